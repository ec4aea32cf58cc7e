"use strict";
// A column sorts by its heading: numbers by their value, all else as text, nothing last.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement;
    const row = head.parentElement;
    const body = row.closest("table").tBodies[0];
    const place = Array.prototype.indexOf.call(row.children, head);
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of row.children) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (line) => {
      const cell = line.children[place];
      const said = cell.dataset.value;
      if (said !== undefined) return Number.isNaN(Number(said)) ? said : Number(said);
      return cell.textContent === "" ? null : cell.textContent;
    };
    const order = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      const both = typeof x === "number" && typeof y === "number";
      const found = both ? x - y : String(x).localeCompare(String(y));
      return down ? -found : found;
    };
    body.append(...[...body.rows].sort(order));
  });
}
// On paper nothing can be opened.
const closed = [];
addEventListener("beforeprint", () => {
  for (const one of document.querySelectorAll("details:not([open])")) {
    one.open = true;
    closed.push(one);
  }
});
addEventListener("afterprint", () => {
  for (const one of closed.splice(0)) one.open = false;
});
