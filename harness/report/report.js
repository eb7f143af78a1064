"use strict";
// Tables sort by their headings, pictures enlarge. All else works without script.

function cellAt(row, column) {
  let place = 0; // a cell may span several columns
  for (const cell of row.cells) {
    place += cell.colSpan;
    if (place > column) return cell;
  }
  return null;
}

function sortValue(row, column) {
  const cell = cellAt(row, column);
  if (!cell) return null;
  if (cell.tagName === "TH") return cell.textContent.trim();
  return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
}

function sortBy(heading) {
  const table = heading.closest("table");
  const column = heading.cellIndex;
  const other = { ascending: "descending", descending: "ascending" };
  const first = heading.querySelector("button").dataset.first;
  const order = other[heading.getAttribute("aria-sort")] || first;
  for (const each of table.tHead.rows[0].cells) each.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const rows = Array.from(table.tBodies[0].rows, (row) => ({ row, value: sortValue(row, column) }));
  rows.sort((a, b) => {
    if (a.value === null || b.value === null) return (a.value === null) - (b.value === null); // last, either way
    return sign * (typeof a.value === "string" ? a.value.localeCompare(b.value) : a.value - b.value);
  });
  table.tBodies[0].append(...rows.map((each) => each.row));
  document.getElementById("said").textContent = `sorted by ${heading.textContent.trim()}, ${order}`;
}

for (const button of document.querySelectorAll("table.sortable thead button")) {
  button.addEventListener("click", () => sortBy(button.closest("th")));
}

const viewer = document.getElementById("viewer");
const enlarged = viewer.querySelector("img");
let scale = 1;

function resize(factor) {
  scale = Math.min(8, Math.max(1, scale * factor));
  enlarged.style.width = `${100 * scale}%`;
}

for (const button of document.querySelectorAll("button.zoom")) {
  button.addEventListener("click", () => {
    const picture = button.querySelector("img");
    enlarged.src = picture.src;
    enlarged.alt = picture.alt;
    scale = 1;
    resize(1);
    viewer.showModal();
  });
}

viewer.addEventListener("click", (event) => {
  if (event.target.dataset.scale) resize(Number(event.target.dataset.scale));
  else if (event.target === enlarged) resize(scale >= 8 ? 1 / 8 : 2);
  else if (event.target === viewer || "close" in event.target.dataset) viewer.close();
});
viewer.addEventListener("keydown", (event) => {
  if (event.key === "+" || event.key === "=") resize(2);
  if (event.key === "-") resize(0.5);
});
