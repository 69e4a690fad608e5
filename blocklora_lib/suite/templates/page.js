// Figures that open, and the start of it all.

function enlarge(image) {
  const shown = make("img", {src: image.src, alt: image.alt})
  let scale = 0  // 0: as large as the window lets it be
  const resize = (by) => {
    scale = Math.min(4, Math.max(0, scale + by))
    shown.style.width = scale ? `${scale * shown.naturalWidth / 2}px` : ""
    shown.classList.toggle("fitted", !scale)
  }
  const close = () => dialog.close()
  const dialog = make("dialog", {className: "enlarged", ariaLabel: image.alt,
    onclose: () => dialog.remove(), onkeydown: ({key}) => resize({"+": 1, "-": -1}[key] ?? 0),
  }, make("p", {}, button(() => resize(1), {}, "Larger"), button(() => resize(-1), {}, "Smaller"),
    button(close, {}, "Close")), make("div", {tabIndex: 0}, shown))
  document.body.append(dialog)
  resize(0)
  dialog.showModal()
}

// The page

function startTables() {
  const here = new Set(records.flatMap(({of}) => Object.keys(of))), known = new Map()
  const of = (node) => (node?.dataset.of ?? "").split(" ").filter((name) => here.has(name))
  for (const node of document.querySelectorAll("[data-of]")) {
    if (!of(node).length) continue
    const link = make("a", {href: place(allOf(of(node)))}, "Records")
    const files = node.querySelector(".files") ?? node
    files.append(" ", link)
  }
  return [...document.querySelectorAll("main table")].filter(isPlain).map((table) => {
    const mine = of(table.closest("[data-of]")), heads = headsOf(table).map(trimmed)
    if (!known.has(`${mine}`)) known.set(`${mine}`, namesOf(mine))
    const names = known.get(`${mine}`)
    const draw = (row) => mine.length ? linkNumbers(row, heads, mine, names) : row
    table.addEventListener("keydown", step)
    return new Listing(table, [...table.tBodies[0].rows], (row, i) => trimmed(row.cells[i]), draw)
  })
}

addEventListener("DOMContentLoaded", () => {
  $("without-script").remove()
  read()
  const listings = startTables()
  for (const image of document.querySelectorAll("main img")) {
    const ariaLabel = `Enlarge: ${image.alt}`
    const opens = button(() => enlarge(image), {className: "zoom", ariaLabel})
    image.replaceWith(opens)
    opens.append(image)
  }
  startRecords()
  addEventListener("beforeprint", () => listings.forEach((listing) => listing.show(true)))
  addEventListener("afterprint", () => listings.forEach((listing) => listing.show()))
})
