// What is chosen, pointed at and typed; colours light and dark; what stands around the maps.

function fillList(id, options, chosen) {
  const list = byId(id)
  list.replaceChildren(...options.map(([text, value]) => new Option(text, value, false, value === chosen)))
}

function offered(map) {
  const entry = page.numbers.filter((one) => one.name === byId(`${map.name}-measure`).value)
  for (const [what, values] of [["variance", page.variances], ["ridge", page.ridges]]) {
    const has = entry.some((one) => one[what] !== undefined)
    byId(`${map.name}-${what}-label`).hidden = !has
    if (has) {
      const before = Number(byId(`${map.name}-${what}`).value) || 0
      fillList(`${map.name}-${what}`, values.map((value, k) => [String(value), k]), before)
    }
  }
}

function nearestTo(values, wanted) {
  return values.reduce((best, value, k) => (Math.abs(value - wanted) < Math.abs(values[best] - wanted) ? k : best), 0)
}

function prepare(map) {
  const names = [...new Set(page.numbers.map((one) => one.name))]
  const second = names.find((name) => name !== names[0] && !name.startsWith("chance")) ?? names[0]
  fillList(`${map.name}-measure`, names.map((name) => [name, name]), map.name === "a" ? names[0] : second)
  fillList(`${map.name}-order`, [["as in the results", ""], ...page.labels.map((name, k) => [`by ${name}`, String(k)])], "")
  offered(map)
  if (!byId(`${map.name}-variance-label`).hidden) byId(`${map.name}-variance`).value = nearestTo(page.variances, 0.99)
  const square = byId(`${map.name}-square`)
  const both = () => {
    byId(`${map.name}-columns`).hidden = square.checked
    refresh(map)
  }
  map.chosen = {
    rows: fillChoice(byId(`${map.name}-rows`), "rows", () => refresh(map)),
    columns: fillChoice(byId(`${map.name}-columns`), "columns", () => refresh(map)),
  }
  square.checked = page.same
  byId(`${map.name}-columns`).hidden = square.checked
  square.addEventListener("change", both)
  byId(`${map.name}-measure`).addEventListener("change", () => {
    offered(map)
    map.show()
  })
  for (const what of ["variance", "ridge"]) byId(`${map.name}-${what}`).addEventListener("change", () => map.show())
  byId(`${map.name}-order`).addEventListener("change", () => refresh(map))
  byId(`${map.name}-csv`).addEventListener("click", () => saveNumbers(map))
  byId(`${map.name}-png`).addEventListener("click", () => savePicture(map))
  byId(`${map.name}-map`).addEventListener("keydown", (event) => typed(map, event))
}

async function refresh(map) {
  await map.show()
  if (map.name === "a" && byId("linked").checked) await maps.b.show()
}

function linkedChanged() {
  const linked = byId("linked").checked
  for (const id of ["b-choice", "b-order"]) (id === "b-order" ? byId(id).parentElement : byId(id)).hidden = linked
}

function point(map, cell) {
  map.cursor = cell
  map.mark()
  const other = partner(map)
  if (other) {
    other.cursor = cell
    other.mark()
  }
}

function typed(map, event) {
  const count = { rows: map.places.rows.length, columns: map.places.columns.length }
  if (!count.rows || !count.columns || event.ctrlKey || event.metaKey || event.altKey) return
  const by = event.shiftKey ? 10 : 1
  const moves = { ArrowUp: [-by, 0], ArrowDown: [by, 0], ArrowLeft: [0, -by], ArrowRight: [0, by] }
  const cell = map.cursor ?? map.picked
  const clamped = (at, most) => Math.max(0, Math.min(most - 1, at))
  if (moves[event.key]) {
    const [down, across] = moves[event.key]
    point(map, cell ? [clamped(cell[0] + down, count.rows), clamped(cell[1] + across, count.columns)] : [0, 0])
  } else if (event.key === "Home" || event.key === "End") {
    point(map, [cell ? cell[0] : 0, event.key === "Home" ? 0 : count.columns - 1])
  } else if (event.key === "Enter" && cell) {
    pick(map, cell)
  } else if (event.key === "+" || event.key === "=") {
    map.zoom(0.5)
  } else if (event.key === "-") {
    map.zoom(2)
  } else if (event.key === "0") {
    map.reset()
  } else return
  event.preventDefault()
  if (map.cursor) {
    map.follow()
    byId("live").textContent = sentence(map, map.cursor)
  }
}

// What Bokeh's figures call, and what may be asked from outside.
window.dsvcca = {
  inside: { page, maps, model, style, entryOf, numbersOf },
  tick: (name, side, at) => maps[name].tick(side, at),
  ranged(name) {
    const map = maps[name]
    if (map.moving || !map.places.rows.length) return
    map.moving = true
    queueMicrotask(() => {
      map.name_()
      const other = partner(map)
      if (other) {
        other.moving = true
        for (const side of ["rows", "columns"]) {
          other.ranges[side].setv({ start: map.ranges[side].start, end: map.ranges[side].end })
        }
        other.name_()
        other.moving = false
      }
      map.moving = false
    })
  },
  mousemove(name, x, y, sx, sy) {
    const map = maps[name]
    const cell = map.value ? map.cellAt(x, y) : null
    if (!cell) return this.mouseleave(name)
    if (!map.cursor || map.cursor[0] !== cell[0] || map.cursor[1] !== cell[1]) point(map, cell)
    fillTip(map, cell, sx, sy)
  },
  mouseleave(name) {
    byId(`${name}-tip`).hidden = true
    point(maps[name], null)
  },
  tap(name, x, y) {
    const cell = maps[name].cellAt(x, y)
    if (cell) {
      byId("live").textContent = sentence(maps[name], cell)
      pick(maps[name], cell)
    }
  },
}

const system = matchMedia("(prefers-color-scheme: dark)")

function coloured() {
  const asked = byId("theme").value
  document.documentElement.dataset.theme = asked === "auto" ? (system.matches ? "dark" : "light") : asked
  const [text, line, back, strong, chance] = ["--text", "--line", "--raised", "--strong", "--chance"].map(style)
  for (const name of ["a", "b", "a_bar", "b_bar", "profile", "spectrum"]) {
    const figure = model(name)
    figure.background_fill_color = back
    figure.border_fill_color = back
    figure.outline_line_color = line
    for (const axis of [...figure.below, ...figure.left]) {
      if (!axis.major_label_text_color && axis.major_label_text_color !== null) continue
      axis.major_label_text_color = axis.axis_label_text_color = text
      axis.axis_line_color = axis.major_tick_line_color = axis.minor_tick_line_color = line
    }
    for (const grid of figure.center) if ("grid_line_color" in grid) grid.grid_line_color = line
    for (const part of figure.renderers) {
      const colour = { value: strong, chance, pointed: text, picked: text }[part.name]
      if (colour) part.glyph.line_color = colour
      if (part.name === "value" && "fill_color" in part.glyph) part.glyph.fill_color = colour
    }
  }
  for (const map of Object.values(maps)) if (map.value) map.draw(map.drawn)
}

function say(element, pairs) {
  for (const [name, value] of pairs) {
    const [term, meaning] = [document.createElement("dt"), document.createElement("dd")]
    term.textContent = name
    meaning.textContent = value
    byId(element).append(term, meaning)
  }
}

function notice(text) {
  const line = document.createElement("p")
  line.className = "notice"
  line.textContent = text
  byId("notices").append(line)
}

function around() {
  const [down, across] = [rows.toLocaleString("en"), columns.toLocaleString("en")]
  const names = [...new Set(page.numbers.map((one) => one.name))]
  byId("summary").textContent = `${page.same ? `${down} representations, each with each` : `${down} × ${across} representations`}; ${names.length} measures; `
    + (page.exactly ? "numbers to seven digits" : "numbers in steps of 1/65,534 of their range")
  for (const text of page.warnings) notice(text)
  for (const text of page.failed) notice(`failed: ${text}`)
  if (page.left_out.length) {
    notice(`Left out, to keep this file small: ${page.left_out.join(", ")}. dsvcca.report(results, measures=[...]) takes measures by name, `
      + "dsvcca.select(results, x=..., y=...) fewer representations, and of up to 300 correlations are on the page, where they were kept.")
  }
  if (page.without.length) notice(`The results hold more: ${page.without.join(", ")}.`)
  say("definitions", names.map((name) => [name, page.numbers.find((one) => one.name === name).definition]))
  say("about", page.about)
}

around()
for (const map of Object.values(maps)) prepare(map)
linkedChanged()
byId("linked").addEventListener("change", () => {
  linkedChanged()
  maps.b.show()
})
byId("theme").addEventListener("change", coloured)
system.addEventListener("change", coloured)
coloured()
for (const map of Object.values(maps)) await map.show()
if (page.correlations) byId("spectrum-caption").textContent = "choose a cell to see its correlations"
else sayNoCorrelations()
byId("profile-caption").textContent = "choose a cell to see its row"
document.body.dataset.ready = "yes"
for (let place = 0; place < page.numbers.length; place++) await numbersOf(place) // so that nobody waits for them later
