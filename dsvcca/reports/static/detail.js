// One pair: all that is known of it, its row, its correlations.

async function everything(i, j) {
  const found = []
  for (const [place, one] of page.numbers.entries()) {
    const value = (await numbersOf(place))(i, j)
    const chance = await chanceOf(one)
    found.push({ one, value, chance: chance && chance(i, j) })
  }
  return found
}

function variantOf(one) {
  const said = []
  if (one.variance !== undefined) said.push(`${page.variances[one.variance]} kept`)
  if (one.ridge !== undefined) said.push(`ridge ${page.ridges[one.ridge]}`)
  return said.length ? ` (${said.join(", ")})` : ""
}

function ranksAt(i, j, variance) {
  const at = ranks[0].length > 1 ? variance ?? 0 : 0
  return [ranks[0][at](i, j), ranks[1][at](i, j)]
}

// What is said of a cell in a line: both names, the measure, chance, ranks.
function sentence(map, cell) {
  const [i, j] = [map.places.rows[cell[0]], map.places.columns[cell[1]]]
  const entry = map.drawn
  const [x, y] = ranksAt(i, j, entry.variance)
  const chance = map.chance ? `, chance ${shown(map.chance(i, j))}` : ""
  const view = page.views[viewAt(i, j)]
  if (!view) return `${nameOf("rows", i)}; ${nameOf("columns", j)}: not compared`
  return `${nameOf("rows", i)}; ${nameOf("columns", j)}: ${entry.name}${variantOf(entry)} ${shown(map.value(i, j))}${chance}, ranks ${x} and ${y}, view ${view}`
}

function fillTip(map, cell, sx, sy) {
  const tip = byId(`${map.name}-tip`)
  const [i, j] = [map.places.rows[cell[0]], map.places.columns[cell[1]]]
  const lines = [["x", nameOf("rows", i)], ["y", nameOf("columns", j)]]
  const view = page.views[viewAt(i, j)]
  if (view) {
    const entry = map.drawn
    lines.push([entry.name + variantOf(entry), shown(map.value(i, j))])
    if (map.chance) lines.push(["chance", shown(map.chance(i, j))])
    const other = partner(map)
    if (other?.drawn && other.drawn !== entry && other.places.rows[cell[0]] === i && other.places.columns[cell[1]] === j) {
      lines.push([other.drawn.name + variantOf(other.drawn), shown(other.value(i, j))])
    }
    const [x, y] = ranksAt(i, j, entry.variance)
    lines.push(["ranks", `${x} and ${y}`], ["view", view])
  } else lines.push(["", "not compared"])
  tip.replaceChildren(...lines.map(([name, value]) => {
    const line = document.createElement("div")
    const bold = document.createElement("b")
    bold.textContent = name
    line.append(bold, ` ${value}`)
    return line
  }))
  tip.hidden = false
  const box = byId(`${map.name}-map`)
  const left = sx + 16 + tip.offsetWidth > box.clientWidth ? Math.max(0, sx - 16 - tip.offsetWidth) : sx + 16
  tip.style.left = `${left}px`
  tip.style.top = `${sy + 16 + tip.offsetHeight > box.clientHeight ? Math.max(0, sy - 16 - tip.offsetHeight) : sy + 16}px`
}

function addRow(body, name, number, more = "") {
  const row = body.insertRow()
  const head = document.createElement("th")
  head.scope = "row"
  head.textContent = name
  const cell = document.createElement("td")
  cell.className = "number"
  cell.textContent = number
  const last = document.createElement("td")
  last.textContent = more
  row.append(head, cell, last)
}

async function pick(map, cell) {
  const pair = [map.places.rows[cell[0]], map.places.columns[cell[1]]]
  const [i, j] = pair
  const other = partner(map)
  for (const one of other ? [map, other] : [map]) {
    one.pair = one === map ? pair : [other.places.rows[cell[0]], other.places.columns[cell[1]]]
    one.markPair()
  }
  byId("pair-caption").textContent = `${nameOf("rows", i)}   and   ${nameOf("columns", j)}`
  const body = byId("pair").tBodies[0]
  const view = page.views[viewAt(i, j)]
  const found = view ? await everything(i, j) : []
  if (map.pair !== pair) return // another was picked meanwhile
  body.replaceChildren()
  for (const { one, value, chance } of found) {
    addRow(body, one.name + variantOf(one), shown(value), chance === null ? "" : `chance ${shown(chance)}`)
  }
  if (view) {
    ranks[0].forEach((_, at) => {
      const [x, y] = ranksAt(i, j, at)
      addRow(body, ranks[0].length > 1 ? `ranks (${page.variances[at]} kept)` : "ranks", `${x} and ${y}`)
    })
    addRow(body, "view", view)
  } else addRow(body, "", "not compared")
  if (map.picked) drawProfile(map, map.picked[0])
  await drawSpectrum(map, i, j)
}

function drawProfile(map, row) {
  profiled = map
  const i = map.places.rows[row]
  const across = map.places.columns
  byId("profile-caption").textContent = `${map.drawn.name} of ${nameOf("rows", i)} with every column`
  model("profile_line").data = {
    at: across.map((_, k) => k),
    value: across.map((j) => map.value(i, j)),
    chance: across.map((j) => (map.chance ? map.chance(i, j) : NaN)),
  }
}

function sayNoCorrelations() {
  byId("spectrum-caption").textContent = page.left_out.includes("correlations")
    ? "correlations are not on this page: dsvcca.plot.spectra(results) draws them"
    : 'no correlations were kept: plan with keep=["correlations"]'
  model("spectrum").visible = false
}

async function drawSpectrum(map, i, j) {
  if (!page.correlations) return
  const pair = map.pair
  const at = page.correlations.length > 1 ? map.drawn.variance ?? 0 : 0
  const rho = (await (spectra[at].read ??= spectra[at]()))(i, j).filter((value) => value === value)
  const place = entryOf("chance_edge", at, undefined)
  const edge = place < 0 || !rho.length ? NaN : (await numbersOf(place))(i, j)
  if (map.pair !== pair) return // another was picked meanwhile
  byId("spectrum-caption").textContent = rho.length
    ? `canonical correlations; dotted: the largest that chance gives, ${shown(edge)}`
    : "no correlations are kept of this pair: it is compared by frequency, or not at all"
  model("spectrum_line").data = { at: rho.map((_, k) => k + 1), value: rho, chance: rho.map(() => edge) }
}
