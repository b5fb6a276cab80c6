// A click, Enter or Space on a column's button sorts by it: numbers the largest first, then turned.
// Cells without a number stay at the end.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const numeric = head.dataset.kind === "number";
      const first = numeric ? "descending" : "ascending";
      const turned = numeric ? "ascending" : "descending";
      const order = head.getAttribute("aria-sort") === first ? turned : first;
      const sign = order === "ascending" ? 1 : -1;
      const value = (row) => row.cells[column]?.dataset.v ?? "";
      const compare = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        return sign * (numeric ? x - y : x.localeCompare(y, "en", { numeric: true }));
      };
      body.append(...[...body.rows].sort(compare));
      heads.forEach((other) => other.setAttribute("aria-sort", other === head ? order : "none"));
    });
  });
}
