// The records that a number comes from: found, counted, shown.

const COLUMNS = ["Record", "Method", "Trained on", "Evaluated on", "Shots", "Seed", "Accuracy (%)",
  "Right", "Seconds", "Status", "Revision", "Host", "SHA-256 of its file"]
let told, records  // what the page says of its records; a row for each set of each

function read() {
  told = JSON.parse($("record-data").textContent)
  const at = Object.fromEntries(told.fields.map((name, i) => [name, i])), shared = new Map()
  const title = (name) => told.titles[name] ?? name
  records = told.rows.flatMap((row) => {
    const get = (name) => told.pool[row[at[name]]]
    const key = get("key"), of = get("experiments"), status = get("status")
    const set = get("spec.dataset"), shots = `${get("spec.shots")}`, seed = `${get("spec.seed")}`
    const method = get("spec.method"), training = get("spec.training")
    const same = `${row[at["spec.method"]]} ${row[at["spec.training"]]}`
    if (!shared.has(same)) {
      shared.set(same, {...method.settings, ...training, ...training?.schedule})
    }
    const settings = shared.get(same), label = Object.values(of)[0]?.at(-1) ?? get("label")
    const made = [`${get("seconds") ?? "–"}`, status, get("provenance.git_revision") ?? "–",
      get("provenance.host") ?? "–", get("sha256").slice(0, 12)]
    return Object.entries(get("accuracy") ?? {[set]: null}).map(([seen, count]) => {
      const accuracy = count && 100 * count[0] / count[1]
      const right = count ? [accuracy.toFixed(2), `${count[0]} of ${count[1]}`] : ["–", "–"]
      const cells = [key, label, title(set), title(seen), shots, seed, ...right, ...made]
      return {key, row, of, set: seen, isOwn: seen === set, title: title(seen), shots, seed,
        settings, accuracy, cells, line: cells.join(" ").toLowerCase()}
    })
  })
}

const TESTS = {
  of: (record, values) => values.some((name) => name in record.of),
  method: (record, values, of) =>
    values.some((value) => of.some((name) => record.of[name]?.includes(value))),
  set: (record, values) => values.includes(record.set) || values.includes(record.title),
  shots: (record, values) => record.shots === "0" || values.includes(record.shots),
  seed: (record, values) => record.shots === "0" || values.includes(record.seed),
}
const hasSetting = (name) => (record, values) => values.some((value) =>
  `${record.settings[name]}` === value || record.settings[name] === toNumber(value))

function select(wanted) {
  return [...new Set(wanted.keys())].reduce((found, name) => {
    const holds = TESTS[name] ?? hasSetting(name), values = wanted.getAll(name)
    return found.filter((record) => holds(record, values, wanted.getAll("of")))
  }, records)
}

const place = (wanted) => `#records?${wanted}`
const allOf = (of) => new URLSearchParams(of.map((name) => ["of", name]))

// the names by which the records of these experiments can be told apart
function namesOf(of) {
  const mine = select(allOf(of))
  return {
    method: new Set(mine.flatMap((record) => of.flatMap((name) => record.of[name] ?? []))),
    set: new Set(mine.flatMap((record) => [record.set, record.title])),
    setting: new Set(mine.flatMap((record) => Object.keys(record.settings))),
  }
}

// what a cell's row and column say of its records: methods, sets, shots, seed, settings
function asked(row, column, heads, of, names) {
  const wanted = allOf(of)
  const add = (name, value) => wanted.getAll(name).includes(value) || wanted.append(name, value)
  const name = (text) => text.split(/ (?:minus|−|-) /).forEach((part) => {
    const plain = part.replace(/ \(source\)$/, "")
    for (const kind of ["method", "set"]) if (names[kind].has(plain)) add(kind, plain)
  })
  name(heads[column])
  heads.forEach((head, i) => {
    const text = trimmed(row.cells[i])
    if (/^(shots|seed)$/i.test(head)) add(head.toLowerCase(), text)
    else if (names.setting.has(head)) add(head, text)
    else name(text)
  })
  return wanted
}

const NO_RESULT = /^(shots|seeds?|of|pairs|rank|n_blocks|lr)$/i  // heads of what a row is of

function linkNumbers(row, heads, of, names) {
  [...row.cells].forEach((cell, i) => {
    const isLinked = cell.firstElementChild || NO_RESULT.test(heads[i])
    if (isLinked || !measured(trimmed(cell))) return
    cell.append(make("a", {className: "number", href: place(asked(row, i, heads, of, names)),
      title: "Show its records", tabIndex: row.querySelector("a.number") ? -1 : 0,
    }, ...cell.childNodes))
  })
  return row
}

// the numbers of a row are one stop of the Tab key; arrows lead from one to the next
function step(event) {
  const links = [...event.target.closest("tr").querySelectorAll("a.number")]
  const by = {ArrowRight: 1, ArrowLeft: -1}[event.key]
  const next = by && links[links.indexOf(event.target) + by]
  if (!next) return
  event.preventDefault()
  next.focus()
}

function drawRecord(record) {
  const link = make("a", {href: `#record-${record.key}`}, record.key)
  const cells = record.cells.map((text, i) => make("td", {className: i > 3 ? "number" : ""}, text))
  cells[0].replaceChildren(link)
  return make("tr", {}, ...cells)
}

// everything that a record says of itself
function showRecord(key) {
  const record = records.find((one) => one.key === key)
  if (!record) return make("p", {}, `No record ${key} is in this report.`)
  const parts = told.fields.map((name, i) => [name, told.pool[record.row[i]]])
    .filter(([, value]) => value !== null && value !== "")
  const lines = parts.flatMap(([name, value]) => {
    const line = ([part, of]) => `${part}: ${JSON.stringify(of)}`
    const text = typeof value === "object" ? Object.entries(value).map(line).join("\n") : `${value}`
    const shown = name === "file" ? make("a", {href: text}, text) : text
    return [make("dt", {}, name), make("dd", {}, shown)]
  })
  return make("article", {className: "record"}, make("h3", {}, `Record ${key}`),
    make("dl", {}, ...lines))
}

function startRecords() {
  const section = $("records"), title = section.querySelector("h2")
  const search = make("input", {type: "search", id: "search", autocomplete: "off", oninput: fill})
  const [filters, one] = [make("p", {className: "filters"}), make("div")]
  const sum = make("p", {role: "status"})
  const heads = COLUMNS.map((name) => make("th", {scope: "col"}, name))
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody"))
  section.append(one, make("p", {className: "search"},
    make("label", {htmlFor: "search"}, "Rows with these words "), search), filters, sum,
  make("div", {className: "scroll"}, table))
  const listing = new Listing(table, records, (record, i) => record.cells[i], drawRecord)
  let chosen = records

  function fill() {
    const parts = search.value.toLowerCase().split(/\s+/)
    const kept = chosen.filter(({line}) => parts.every((part) => line.includes(part)))
    const sizes = [kept.length, new Set(kept.map(({key}) => key)).size]
    const [rows, keys] = sizes.map((n) => n.toLocaleString("en"))
    const means = [[true, "own"], [false, "other"]].flatMap(([isOwn, whose]) => {
      const seen = kept.flatMap((record) => record.isOwn === isOwn ? record.accuracy ?? [] : [])
      const mean = seen.reduce((total, value) => total + value, 0) / seen.length
      return seen.length ? [`${mean.toFixed(2)}% on their ${whose} sets`] : []
    })
    sum.textContent = `Rows: ${rows}, of records: ${keys}.` +
      (means.length ? ` Mean accuracy: ${means.join(", ")}.` : "")
    listing.keep(kept)
  }

  function view(moves) {
    const key = /^#record-(\w+)$/.exec(location.hash)?.[1]
    const query = /^#records\?(.+)$/.exec(location.hash)?.[1]
    const wanted = new URLSearchParams(query), all = [...wanted]
    chosen = select(wanted)
    filters.replaceChildren(...all.map(([name, value], i) => make("a", {title: "Leave this out",
      href: place(new URLSearchParams(all.filter((_, j) => j !== i))),
    }, `${name === "of" ? "experiment" : name}: ${value} ✕`)))
    if (!chosen.length && wanted.has("of")) {
      chosen = select(allOf(wanted.getAll("of")))
      filters.prepend("No record has all of these names; these are all that the notebook read. ")
    }
    one.replaceChildren(...(key ? [showRecord(key)] : []))
    search.value = ""
    fill()
    if (!moves || !location.hash.startsWith("#record")) return
    title.focus({preventScroll: true})
    section.scrollIntoView()
  }

  title.tabIndex = -1
  addEventListener("hashchange", () => view(true))
  view(true)
}
