"use strict";
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const numberOf = (text) => {
  const found = parseFloat(text.trim().replace(/,/g, "").replace("−", "-"));
  return Number.isNaN(found) ? null : found;
};

// Columns sort by their numbers, or by their texts; empty cells come last.
for (const head of all("th button[data-sort]")) head.addEventListener("click", () => {
  const cell = head.closest("th"), table = head.closest("table"), body = table.tBodies[0];
  const at = cell.cellIndex, down = cell.getAttribute("aria-sort") !== "descending";
  for (const other of all("th[aria-sort]", table)) other.removeAttribute("aria-sort");
  cell.setAttribute("aria-sort", down ? "descending" : "ascending");
  const key = (row) => row.cells[at].dataset.value ?? row.cells[at].textContent;
  const order = (a, b) => {
    const [x, y] = [key(a), key(b)], [m, n] = [numberOf(x), numberOf(y)];
    if (!x.trim() || !y.trim()) return x.trim() ? -1 : y.trim() ? 1 : 0;
    const sign = m !== null && n !== null ? m - n : x.localeCompare(y);
    return down ? -sign : sign;
  };
  body.append(...[...body.rows].sort(order));
});

// What stands under the pointer is named, and the other series of its plot step back.
const tip = document.createElement("div");
tip.id = "tip"; tip.hidden = true; tip.setAttribute("aria-hidden", "true");
document.body.append(tip);
document.addEventListener("pointermove", (event) => {
  const found = event.target.closest?.("[data-tip]"), series = event.target.closest?.("[data-series]");
  for (const plot of all("svg.focus")) plot.classList.remove("focus");
  for (const mark of all("[data-series].on")) mark.classList.remove("on");
  if (series) {
    const plot = series.ownerSVGElement;
    plot.classList.add("focus");
    for (const mark of all("[data-series]", plot)) mark.classList.toggle("on", mark.dataset.series === series.dataset.series);
  }
  tip.hidden = !found;
  if (!found) return;
  tip.textContent = found.dataset.tip;
  tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)) + "px";
  tip.style.top = Math.max(4, event.clientY - tip.offsetHeight - 10) + "px";
});

// A choice shows one part of its group.
for (const choice of all("select[data-shows]")) {
  const show = () => {
    for (const option of choice.options) document.getElementById(option.value).hidden = option.value !== choice.value;
  };
  choice.addEventListener("change", show);
  show();
}

// A heat map takes its heat and its numbers from the measure that is chosen.
for (const choice of all("select[data-heats]")) choice.addEventListener("change", () => {
  for (const cell of all("[data-" + choice.value + "]", document.getElementById(choice.dataset.heats))) {
    const [share, text] = cell.dataset[choice.value].split("|");
    cell.style.setProperty("--share", share);
    cell.querySelector(".value").textContent = text;
  }
  const ramp = document.getElementById(choice.dataset.heats + "-ramp"), chosen = choice.selectedOptions[0].dataset;
  ramp.querySelector(".low").textContent = chosen.low;
  ramp.querySelector(".high").textContent = chosen.high;
});

// Filters: a search, choices by attribute, and the least confidence.
for (const bar of all("[data-filters]")) {
  const items = all("[data-item]", document.getElementById(bar.dataset.filters)), count = bar.querySelector("output");
  const apply = () => {
    let shown = 0;
    for (const item of items) {
      const fits = all("[data-by]", bar).every((control) => {
        const name = control.dataset.by;
        if (control.type === "button") return control.getAttribute("aria-pressed") !== "true" || !control.value || item.dataset[name] === control.value;
        if (control.type === "search") return item.textContent.toLowerCase().includes(control.value.toLowerCase());
        if (control.type === "range") return Number(item.dataset[name] || 1) >= Number(control.value);
        return !control.value || item.dataset[name] === control.value;
      });
      item.hidden = !fits;
      shown += fits;
    }
    if (count) count.textContent = shown + " of " + items.length + " shown";
  };
  bar.addEventListener("input", apply);
  for (const button of all("button[data-by]", bar)) button.addEventListener("click", () => {
    for (const other of all("button[data-by='" + button.dataset.by + "']", bar)) other.setAttribute("aria-pressed", String(other === button));
    apply();
  });
  apply();
}

for (const link of all("a[data-opens]")) link.addEventListener("click", () => { document.querySelector(link.hash).open = true; });
for (const button of all("button[data-dialog]")) button.addEventListener("click", () => {
  const dialog = document.getElementById(button.dataset.dialog);
  for (const copy of all("img[data-from]", dialog)) copy.src = document.getElementById(copy.dataset.from).src;
  dialog.showModal();
});
for (const button of all("dialog .close")) button.addEventListener("click", () => button.closest("dialog").close());
for (const slider of all("input[data-layers]")) slider.addEventListener("input", () => {
  for (const layer of all("[data-layer]", slider.closest("figure"))) layer.hidden = layer.dataset.layer !== slider.value;
});
for (const button of all("button[data-copies]")) button.addEventListener("click", async () => {
  await navigator.clipboard.writeText(document.getElementById(button.dataset.copies).textContent.trim());
  button.textContent = "Copied";
});
addEventListener("beforeprint", () => { for (const part of all("details")) part.open = true; });
