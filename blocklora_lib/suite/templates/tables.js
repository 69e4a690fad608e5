"use strict"
// Tables that sort and turn pages, figures that open, and the records that a number comes from.
// It writes text and never HTML, which the page's policy forbids, and fetches nothing.

const PAGE = 100  // rows of a table that are shown at a time
const $ = (id) => document.getElementById(id)
const trimmed = (cell) => cell.textContent.trim()

function make(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties)
  node.append(...children)
  return node
}

const button = (onclick, properties, ...children) =>
  make("button", {type: "button", onclick, ...properties}, ...children)

// Numbers

const NUMBER = String.raw`[-+−]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:e[-+]?\d+)?`
// a number, its unit, and what is said about it: '64.1 ± 3.2', '+1.2 [+0.1, +2.3]', '3 of 11'
const TOLD = String.raw`( (±|of|/) .*| ?[\[(*].*)?`
const ESTIMATE = RegExp(`^[<>≤≥~]?\\s*(${NUMBER})\\s?([%a-zA-Zµ×/]*)${TOLD}$`)
const INTERVAL = RegExp(`^\\[\\s*(${NUMBER})\\s*(?:,|to)\\s*(${NUMBER})\\s*\\]$`)
const words = new Intl.Collator("en", {numeric: true})
const toNumber = (text) => Number(text.replaceAll("−", "-").replaceAll(",", ""))
const isEmpty = (text) => ["", "–", "-", "nan"].includes(text)

// [number, unit] of a cell's text, of an interval alone its middle; null where it is no number
function measured(text) {
  const range = INTERVAL.exec(text)
  if (range) return [(toNumber(range[1]) + toNumber(range[2])) / 2, ""]
  const found = ESTIMATE.exec(text)
  return found && [toNumber(found[1]), found[2]]
}

// how the i-th text compares with the j-th: as numbers of one unit, else as words; empty ones last
function comparison(texts, sign) {
  const values = texts.map((text) => isEmpty(text) ? null : measured(text))
  const isNumber = values.every((value, i) => value || isEmpty(texts[i])) &&
    new Set(values.filter(Boolean).map(([, unit]) => unit)).size === 1
  return (i, j) => isEmpty(texts[i]) - isEmpty(texts[j]) || (isEmpty(texts[i]) ? 0 :
    sign * (isNumber ? values[i][0] - values[j][0] : words.compare(texts[i], texts[j])))
}

// Tables

const headsOf = (table) => [...table.tHead.rows[0].cells]

function isPlain(table) {  // one row of heads, one body, no cell over several places
  const wide = table.tHead?.rows[0]?.cells.length
  return table.tHead?.rows.length === 1 && table.tBodies.length === 1 && !table.tFoot &&
    [...table.rows].every(({cells}) => cells.length === wide &&
      [...cells].every((cell) => cell.colSpan === 1 && cell.rowSpan === 1))
}

// rows: whatever `text(row, column)` and `draw(row)`, a <tr>, understand
class Listing {
  constructor(table, rows, text, draw) {
    Object.assign(this, {table, rows, text, draw, column: -1, sign: 0})
    headsOf(table).filter(trimmed).forEach((head) =>
      head.append(button(() => this.sort(head.cellIndex), {className: "sort"}, ...head.childNodes)))
    this.told = make("span", {role: "status"})
    this.back = button(() => this.turn(-PAGE), {}, "Previous")
    this.next = button(() => this.turn(PAGE), {}, "Next")
    this.pager = make("p", {className: "pager"}, this.back, this.next, this.told)
    table.after(this.pager)
    this.arrange()
  }

  keep(rows) {
    this.rows = rows
    this.arrange()
  }

  turn(by) {
    this.first += by
    this.show()
  }

  sort(column) {  // upwards, downwards, and as it was
    this.sign = this.column !== column ? 1 : {1: -1, [-1]: 0, 0: 1}[this.sign]
    this.column = column
    headsOf(this.table).forEach((head) => head.removeAttribute("aria-sort"))
    const way = {1: "ascending", [-1]: "descending"}[this.sign]
    if (way) headsOf(this.table)[column].setAttribute("aria-sort", way)
    this.arrange()
  }

  arrange() {
    this.order = this.rows
    if (this.sign) {
      const texts = this.rows.map((row) => this.text(row, this.column))
      const places = texts.map((_, i) => i).sort(comparison(texts, this.sign))
      this.order = places.map((i) => this.rows[i])
    }
    this.first = 0
    this.show()
  }

  show(all = false) {
    const n = this.order.length, first = all ? 0 : this.first
    const last = all ? n : Math.min(first + PAGE, n)
    this.table.tBodies[0].replaceChildren(...this.order.slice(first, last).map(this.draw))
    const [from, to, of] = [first + 1, last, n].map((x) => x.toLocaleString("en"))
    this.told.textContent = `${from}–${to} of ${of}`
    this.pager.hidden = n <= PAGE
    this.back.disabled = first === 0
    this.next.disabled = last === n
  }
}
