"use strict";
// Hides the entries of a list that lack a chosen value or the words searched for, and counts: beside each value stands
// how many entries choosing it would show. Texts are read and written as text, never as HTML.
for (const browser of document.querySelectorAll(".browser")) {
  const filters = browser.querySelector(".filters");
  const selects = [...filters.querySelectorAll("select")];
  const search = filters.querySelector("input");
  const status = filters.querySelector("[role=status]");
  const entries = [...browser.querySelectorAll(".entries > article")].map((article) => ({
    article,
    values: new Set(article.dataset.values.split(" ")),
    text: null,
  }));

  const textOf = (entry) => {
    entry.text ??= [...entry.article.querySelectorAll(".kicker, pre, .note")]
      .map((part) => part.textContent.toLowerCase())
      .join("\n");
    return entry.text;
  };

  const update = () => {
    const wanted = search.value.toLowerCase();
    const counts = new Map();
    let shown = 0;
    for (const entry of entries) {
      const found = wanted === "" || textOf(entry).includes(wanted);
      const missed = selects.filter((select) => select.value !== "" && !entry.values.has(select.value));
      const show = found && missed.length === 0;
      if (entry.article.hidden === show) entry.article.hidden = !show;
      shown += show;
      if (!found || missed.length > 1) continue;
      for (const value of entry.values) {
        const own = missed.length === 0 || missed[0] === selects[Number.parseInt(value, 10)];
        if (own) counts.set(value, (counts.get(value) ?? 0) + 1);
      }
    }
    for (const option of filters.querySelectorAll("option[data-label]")) {
      option.textContent = `${option.dataset.label} (${(counts.get(option.value) ?? 0).toLocaleString("en")})`;
    }
    status.textContent = `${shown.toLocaleString("en")} of ${entries.length.toLocaleString("en")} shown`;
  };

  for (const event of ["input", "change"]) filters.addEventListener(event, update);
  filters.querySelector("button").addEventListener("click", () => {
    for (const select of selects) select.value = "";
    search.value = "";
    update();
    search.focus();
  });
  addEventListener("pageshow", update); // a browser may have kept what was chosen before
  filters.hidden = false;
  update();
}
