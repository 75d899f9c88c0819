// Two heatmaps: cells as pixels, names along the axes, the cell under the pointer, and what follows when they are linked.

const doc = Bokeh.documents[0]
const model = (name) => doc.get_model_by_name(name)
const { ndarray } = Bokeh.require("core/util/ndarray")
const byId = (id) => document.getElementById(id)
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim()

const NAMED = 45 // cells that are named one by one, at most
const LETTERS = { rows: 30, columns: 22 } // of a name along an axis

function pixel(colour) {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16))
  return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0
}

class HeatMap {
  constructor(name) {
    this.name = name
    this.figure = model(name)
    this.ranges = { rows: model(`${name}_rows`), columns: model(`${name}_columns`) }
    this.places = { rows: [], columns: [] }
    this.cursor = null // [row, column] of what is shown
    this.picked = null // likewise, where `pair` stands
    this.pair = null // [representation of the rows, of the columns]
    this.drawn = null // the entry whose numbers `value` and `chance` are
    this.moving = false
  }

  get selection() {
    return byId("linked").checked && this.name === "b" ? maps.a : this
  }

  get entry() {
    const number = (id) => (byId(`${this.name}-${id}-label`).hidden ? undefined : Number(byId(`${this.name}-${id}`).value))
    return page.numbers[entryOf(byId(`${this.name}-measure`).value, number("variance") ?? 0, number("ridge") ?? 0)]
  }

  // Choose what is asked for and draw it.
  async show() {
    const from = this.selection
    const order = byId(`${from.name}-order`).value
    const same = byId(`${from.name}-square`).checked
    const places = {
      rows: ordered("rows", carrying("rows", from.chosen.rows), order),
      columns: ordered("columns", carrying("columns", same ? from.asColumns() : from.chosen.columns), order),
    }
    const moved = ["rows", "columns"].some((side) => places[side].length !== this.places[side].length)
    this.places = places
    const entry = this.entry
    const [value, chance] = [await numbersOf(page.numbers.indexOf(entry)), await chanceOf(entry)]
    if (entry !== this.entry || places !== this.places) return // something else was asked for meanwhile
    this.value = value
    this.chance = chance
    this.drawn = entry
    this.draw(entry)
    if (moved) this.reset()
    else this.name_()
    this.cursor = null
    this.markPair()
    if (profiled === this && this.picked) drawProfile(this, this.picked[0])
    byId(`${this.name}-chosen`).textContent = `${places.rows.length} × ${places.columns.length}`
    byId(`${this.name}-map`).setAttribute("aria-label", `${entry.name}, ${places.rows.length} rows, ${places.columns.length} columns`)
  }

  // Mark the pair that was picked, wherever it stands now.
  markPair() {
    const at = ["rows", "columns"].map((side, k) => (this.pair ? this.places[side].indexOf(this.pair[k]) : -1))
    this.picked = at.every((place) => place >= 0) ? at : null
    this.mark()
  }

  // What is chosen of rows, said of columns: of labels that columns have as well.
  asColumns() {
    const found = new Map()
    for (const [k, codes] of this.chosen.rows) {
      const wanted = new Set([...codes].map((code) => page.x[k].values[code]))
      found.set(k, new Set(page.y[k].values.map((value, code) => [value, code]).filter(([value]) => wanted.has(value)).map(([, code]) => code)))
      if (codes.size && !found.get(k).size) found.get(k).add(-1)
    }
    return found
  }

  scale(entry) {
    if (entry.kind === "similarity") return [Math.min(0, entry.range[0]), 1]
    return [Math.min(0, entry.range[0]), entry.range[1] > 0 ? entry.range[1] : 1]
  }

  draw(entry) {
    const { rows: down, columns: across } = this.places
    const [low, high] = this.scale(entry)
    const colours = (entry.kind === "distance" ? [...page.palette].reverse() : page.palette).map(pixel)
    const [nothing, byChance] = [pixel(style("--nothing")), pixel(style("--chance"))]
    const cells = new Uint32Array(down.length * across.length)
    const least = { chance: Infinity, most: -Infinity }
    let holes = 0
    let no_more = 0
    for (let r = 0, k = 0; r < down.length; r++) {
      for (let c = 0; c < across.length; c++, k++) {
        const value = this.value(down[r], across[c])
        if (value !== value) {
          cells[k] = nothing
          holes++
          continue
        }
        const chance = this.chance ? this.chance(down[r], across[c]) : NaN
        if (chance === chance) {
          if (chance < least.chance) least.chance = chance
          if (chance > least.most) least.most = chance
          if (value <= chance) {
            cells[k] = byChance
            no_more++
            continue
          }
        }
        cells[k] = colours[Math.max(0, Math.min(255, Math.floor(((value - low) / (high - low)) * 256)))]
      }
    }
    const image = ndarray(cells, { dtype: "uint32", shape: [down.length, across.length] })
    model(`${this.name}_cells`).data = { image: [image], x: [0], y: [0], dw: [across.length], dh: [down.length] }
    this.drawBar(entry, low, high, colours, least)
    this.legend(entry, least, holes, no_more)
  }

  drawBar(entry, low, high, colours, chance) {
    const bar = model(`${this.name}_bar`)
    bar.x_range.start = low
    bar.x_range.end = high
    const image = ndarray(Uint32Array.from(colours), { dtype: "uint32", shape: [1, 256] })
    model(`${this.name}_colours`).data = { image: [image], x: [low], y: [0], dw: [high - low], dh: [1] }
    const box = model(`${this.name}_chance`)
    box.visible = Number.isFinite(chance.chance)
    if (box.visible) {
      const least = (high - low) / 300 // a line where chance is the same everywhere
      box.left = Math.min(chance.chance, high) - least
      box.right = Math.min(chance.most, high) + least
    }
    box.line_color = box.hatch_color = style("--chance")
  }

  legend(entry, chance, holes, no_more) {
    const text = byId(`${this.name}-legend`)
    text.replaceChildren()
    const swatch = (colour, words) => {
      const box = document.createElement("span")
      box.className = "swatch"
      box.style.background = style(colour)
      text.append(box, ` ${words}  `)
    }
    text.append(entry.kind === "distance" ? "distance: alike is bright  " : "")
    if (Number.isFinite(chance.chance)) {
      const range = shown(chance.chance) === shown(chance.most) ? shown(chance.most) : `${shown(chance.chance)} to ${shown(chance.most)}`
      swatch("--chance", `hatched above: chance, ${range}; cells no larger than it (${no_more.toLocaleString("en")})`)
    } else text.append("what chance gives is not known of this measure  ")
    if (holes) swatch("--nothing", `not compared, or failed (${holes.toLocaleString("en")})`)
  }

  reset() {
    for (const side of ["rows", "columns"]) {
      const count = this.places[side].length
      const range = this.ranges[side]
      range.bounds = [0, Math.max(1, count)]
      range.setv(side === "rows" ? { start: count, end: 0, reset_start: count, reset_end: 0 } : { start: 0, end: count, reset_start: 0, reset_end: count })
    }
    this.name_()
  }

  // Which cells are seen, as [first, end) of a side.
  seen(side) {
    const { start, end } = this.ranges[side]
    const count = this.places[side].length
    return [Math.max(0, Math.floor(Math.min(start, end) + 1e-9)), Math.min(count, Math.ceil(Math.max(start, end) - 1e-9))]
  }

  // Put names along the axes: of every cell where there is room, else of runs that share a label.
  name_() {
    for (const side of ["rows", "columns"]) {
      const [first, end] = this.seen(side)
      const ticks = new Map()
      if (end - first <= NAMED) {
        for (let at = first; at < end; at++) ticks.set(at + 0.5, nameOf(side, this.places[side][at]))
      } else {
        for (const [from, to, name] of this.runs(side, first, end)) ticks.set((from + to) / 2, name)
      }
      this[`${side}_names`] = ticks
      model(`${this.name}_${side}_ticks`).ticks = [...ticks.keys()]
    }
  }

  runs(side, first, end) {
    const places = this.places[side]
    const worth = naming[side].map((k) => {
      const found = []
      for (let at = first; at < end; at++) {
        const value = valueOf(side, k, places[at])
        if (found.length && found[found.length - 1][2] === value) found[found.length - 1][1] = at + 1
        else found.push([at, at + 1, value, k])
      }
      return found
    })
    const fits = worth.filter((found) => found.length <= NAMED).sort((one, other) => other.length - one.length)[0]
    // Beside the label that the run shares, which comes first, what else all of it carries.
    if (fits) return fits.map(([from, to, , k]) => [from, to, [k, ...naming[side].filter((other) => other !== k && this.shares(side, other, from, to))]
      .map((one) => labelled(side, one, places[from])).filter((text) => text !== "").join(" · ")])
    const step = Math.ceil((end - first) / NAMED)
    const found = []
    for (let at = first; at < end; at += step) found.push([at, at + 1, nameOf(side, places[at])])
    return found
  }

  shares(side, k, from, to) {
    const places = this.places[side]
    const { codes } = sides[side][k]
    for (let at = from + 1; at < to; at++) if (codes[places[at]] !== codes[places[from]]) return false
    return true
  }

  tick(side, at) {
    const name = this[`${side}_names`]?.get(at) ?? ""
    return name.length > LETTERS[side] ? `${name.slice(0, LETTERS[side] - 1)}…` : name
  }

  cellAt(x, y) {
    const [row, column] = [Math.floor(y), Math.floor(x)]
    const inside = row >= 0 && column >= 0 && row < this.places.rows.length && column < this.places.columns.length
    return inside ? [row, column] : null
  }

  mark() {
    for (const [what, cell] of [["pointed", this.cursor], ["picked", this.picked]]) {
      const corners = cell ? [[cell[1]], [cell[1] + 1], [cell[0]], [cell[0] + 1]] : [[], [], [], []]
      model(`${this.name}_${what}`).data = { left: corners[0], right: corners[1], top: corners[2], bottom: corners[3] }
    }
  }

  zoom(by) {
    const centre = this.cursor ?? ["rows", "columns"].map((side) => this.seen(side).reduce((a, b) => a + b) / 2 - 0.5)
    for (const [side, at] of [["rows", centre[0] + 0.5], ["columns", centre[1] + 0.5]]) {
      const count = this.places[side].length
      const range = this.ranges[side]
      const half = Math.max(0.5, (Math.abs(range.end - range.start) * by) / 2)
      const from = Math.max(0, Math.min(at - half, count - 2 * half))
      const to = Math.min(count, from + 2 * half)
      range.setv(side === "rows" ? { start: to, end: from } : { start: from, end: to })
    }
  }

  // Move what is seen so that the cursor is among it.
  follow() {
    for (const [side, at] of [["rows", this.cursor[0]], ["columns", this.cursor[1]]]) {
      const range = this.ranges[side]
      const [from, to] = [Math.min(range.start, range.end), Math.max(range.start, range.end)]
      const by = at < from ? at - from : at + 1 > to ? at + 1 - to : 0
      if (by) range.setv({ start: range.start + by, end: range.end + by })
    }
  }
}

let profiled = null // the map whose row is drawn below

const maps = { a: new HeatMap("a"), b: new HeatMap("b") }

// The other map, where both show as many rows and columns: they then move together.
function partner(map) {
  const other = maps[map.name === "a" ? "b" : "a"]
  return ["rows", "columns"].every((side) => other.places[side].length === map.places[side].length) ? other : null
}
