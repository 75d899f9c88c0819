// What is shown, saved: numbers as CSV, a row a pair, and the picture as PNG.

function save(parts, type, name) {
  const link = document.createElement("a")
  link.href = URL.createObjectURL(new Blob(parts, { type }))
  link.download = name
  link.click()
  setTimeout(() => URL.revokeObjectURL(link.href), 60000)
}

const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text)
const digits = (value) => (Number.isFinite(value) ? String(page.exactly ? Number(value.toPrecision(7)) : Number(value.toPrecision(6))) : "")

async function saveNumbers(map) {
  const status = byId(`${map.name}-saving`)
  const button = byId(`${map.name}-csv`)
  button.disabled = true
  const { rows: down, columns: across } = map.places
  const read = await Promise.all(page.numbers.map((_, place) => numbersOf(place)))
  const names = (side) => page.labels.map((name) => quoted(`${side}_${name}`))
  const heads = ranks[0].length > 1 ? page.variances.map((one) => ` (${one} kept)`) : [""]
  const head = [...names("x"), ...names("y"), "view", ...heads.flatMap((one) => [`rank_x${one}`, `rank_y${one}`]), ...page.numbers.map((one) => one.name + variantOf(one))]
  const own = (side, i) => page.labels.map((_, k) => quoted(valueOf(side, k, i))).join(",")
  const labels = across.map((j) => own("columns", j))
  const there = new Set(across)
  const inRows = new Set(down)
  const parts = [`${head.map(quoted).join(",")}\r\n`]
  let count = 0
  let looked = performance.now()
  for (const [r, i] of down.entries()) {
    const lines = []
    const left = own("rows", i)
    for (const [c, j] of across.entries()) {
      if (page.same && j < i && there.has(i) && inRows.has(j)) continue // its mirror is a row already
      const view = page.views[viewAt(i, j)]
      if (!view) continue
      const sizes = ranks[0].map((_, at) => ranksAt(i, j, at).join(","))
      lines.push(`${left},${labels[c]},${view},${sizes.join(",")},${read.map((one) => digits(one(i, j))).join(",")}\r\n`)
    }
    count += lines.length
    parts.push(lines.join(""))
    if (performance.now() - looked > 100) {
      status.textContent = `${Math.round((100 * r) / down.length)} %`
      await new Promise((resolve) => setTimeout(resolve))
      looked = performance.now()
    }
  }
  save(parts, "text/csv", `${map.entry.name}.csv`)
  status.textContent = `${count.toLocaleString("en")} pairs saved`
  button.disabled = false
}

async function savePicture(map) {
  const blob = await Bokeh.index.find_one(map.figure).export("png").to_blob()
  save([blob], "image/png", `${map.entry.name}.png`)
  byId(`${map.name}-saving`).textContent = "picture saved"
}
