// Numbers of the page: where they lie, and what stands at (i, j). They are unpacked when they are first wanted.

const page = JSON.parse(document.getElementById("contents").textContent)
const rows = page.places[0].length
const columns = page.places[1].length

const kinds = { uint8: Uint8Array, uint16: Uint16Array, float32: Float32Array, float64: Float64Array }
const NOTHING = 65535 // what stands for NaN among 16 bits

async function unpacked(packed) {
  const text = document.getElementById(`numbers-${packed.text}`).textContent
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))
  const planes = new Uint8Array(await new Response(stream).arrayBuffer())
  const size = kinds[packed.type].BYTES_PER_ELEMENT
  const count = planes.length / size
  const joined = new Uint8Array(planes.length)
  for (let byte = 0; byte < size; byte++) {
    for (let k = 0, from = byte * count; k < count; k++) joined[k * size + byte] = planes[from + k]
  }
  return new kinds[packed.type](joined.buffer)
}

// What a packed array holds at (i, j): a number, or (where there are more of a pair) a list of them.
async function reader(packed) {
  const numbers = await unpacked(packed)
  const { low, step, inner } = packed
  const place = packed.form === "triangle"
    ? (i, j) => (i >= j ? (i * (i + 1)) / 2 + j : (j * (j + 1)) / 2 + i)
    : (i, j) => i * columns + j
  const value = packed.type === "uint16"
    ? (k) => (numbers[k] === NOTHING ? NaN : low + numbers[k] * step)
    : (k) => numbers[k]
  if (inner === 1) return (i, j) => value(place(i, j))
  return (i, j) => Array.from({ length: inner }, (_, k) => value(place(i, j) * inner + k))
}

const viewAt = await reader(page.view)

async function tableReader(table) {
  const [ofX, ofY] = table.kinds
  const [, , across] = table.shape
  const down = table.shape[1]
  const numbers = table.numbers.map((value) => (value === null ? NaN : value))
  return (i, j) => {
    const view = viewAt(i, j)
    return view ? numbers[(view * down + ofX[i]) * across + ofY[j]] : NaN
  }
}

const readers = new Map()

// The numbers of one entry of page.numbers, as a function of (i, j).
function numbersOf(place) {
  if (!readers.has(place)) {
    const one = page.numbers[place]
    const found = one.table ? tableReader(one.table)
      : one.mirror === undefined ? reader(one.packed)
        : numbersOf(one.mirror).then((other) => (i, j) => other(j, i))
    readers.set(place, found)
  }
  return readers.get(place)
}

async function ranksOf(side) {
  return Promise.all(page.ranks.map(async (sides) => {
    const one = sides[side]
    if (!Array.isArray(one)) return reader(one)
    return (i, j) => (viewAt(i, j) ? one[side === 0 ? i : j] : 0)
  }))
}

const ranks = [await ranksOf(0), await ranksOf(1)]

// Which entry of page.numbers holds a measure, of this variance and ridge; of the first where it has only one. -1: none.
function entryOf(name, variance, ridge) {
  return page.numbers.findIndex((one) => one.name === name
    && (one.variance === undefined || one.variance === variance) && (one.ridge === undefined || one.ridge === ridge))
}

// What independent data are expected to show where `one` is measured: a function of (i, j); null where it is not known.
async function chanceOf(one) {
  if (typeof one.independent === "number") return () => one.independent
  if (one.independent === null) return null
  const place = entryOf(one.independent, one.variance, one.ridge)
  return place < 0 ? null : numbersOf(place)
}

const spectra = page.correlations && page.correlations.map((packed) => () => reader(packed))

function shown(value) {
  if (!Number.isFinite(value)) return "–"
  if (Number.isInteger(value)) return value.toLocaleString("en")
  const size = Math.abs(value)
  return size >= 1e5 || size < 1e-4 ? value.toExponential(2) : value.toFixed(size >= 100 ? 1 : 4)
}
