// Labels: what representations are called, which are chosen, and in what order they stand.

const sides = { rows: page.x, columns: page.y }
const counts = { rows, columns }

const varying = (side) => page.labels.map((name, k) => k).filter((k) => new Set(sides[side][k].codes).size > 1)
const naming = { rows: varying("rows"), columns: varying("columns") }

function valueOf(side, k, i) {
  const label = sides[side][k]
  return label.values[label.codes[i]]
}

function labelled(side, k, i) {
  const value = valueOf(side, k, i)
  return page.labels[k] === "layer" || value === "" ? value : `${page.labels[k]} ${value}`
}

function nameOf(side, i) {
  const names = (naming[side].length ? naming[side] : page.labels.map((_, k) => k)).map((k) => labelled(side, k, i))
  return names.filter((name) => name !== "").join(" · ")
}

// Which of a side carry what is chosen of every label; `chosen` maps places of labels to sets of codes.
function carrying(side, chosen) {
  const found = []
  for (let i = 0; i < counts[side]; i++) {
    if ([...chosen].every(([k, codes]) => !codes.size || codes.has(sides[side][k].codes[i]))) found.push(i)
  }
  return found
}

// In order of a label's values, else as they stand; `order` is "" or the place of a label.
function ordered(side, places, order) {
  if (order === "") return places
  const label = sides[side][Number(order)]
  const worth = label.values.map((value, code) => [value, code])
  if (label.number) worth.sort((a, b) => Number(a[0]) - Number(b[0]))
  const rank = new Map(worth.map(([, code], at) => [code, at]))
  return [...places].sort((i, j) => rank.get(label.codes[i]) - rank.get(label.codes[j]) || i - j)
}

// A list of each label's values, to choose from; calls `changed` when something else is chosen.
function fillChoice(element, side, changed) {
  const box = element.querySelector(".labels")
  const chosen = new Map()
  for (const k of naming[side]) {
    const label = document.createElement("label")
    label.append(page.labels[k])
    const list = document.createElement("select")
    list.multiple = true
    list.size = Math.min(6, sides[side][k].values.length)
    sides[side][k].values.forEach((value, code) => list.append(new Option(value === "" ? "(none)" : value, code)))
    list.addEventListener("change", () => {
      chosen.set(k, new Set([...list.selectedOptions].map((option) => Number(option.value))))
      changed()
    })
    label.append(list)
    box.append(label)
  }
  if (!naming[side].length) box.append("all carry the same labels")
  return chosen
}
