"use strict";
// Lists the images that pass the filters, a page at a time: only those rows, and their pictures,
// exist. All text goes in as text, never as markup.
(() => {
  const PER_PAGE = 100;
  const element = (id) => document.getElementById(id);
  const rows = JSON.parse(element("data").textContent).rows;
  const collator = new Intl.Collator("en", { numeric: true });
  const body = element("images").tBodies[0];
  const headings = [...element("images").querySelectorAll("[data-sort]")];
  const filters = element("filters");
  let found = rows;
  let page = 0;
  let viewed = 0;

  rows.forEach((row, order) => {
    row.order = order;
    row.lower = row.name.toLowerCase();
  });

  // Scores close to 0 and 1 are not rounded to certainty.
  function scoreText(score) {
    if (score > 0.9995 && score < 1) return "> 0.999";
    if (score < 0.0005 && score > 0) return "< 0.001";
    return score.toFixed(3);
  }

  function create(name, className, text) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function picture(content, className, alt) {
    const image = create("img", className);
    image.loading = "lazy";
    image.decoding = "async";
    image.alt = alt;
    image.src = `data:image/webp;base64,${content}`;
    return image;
  }

  function pictureCell(row, index) {
    const cell = create("td", "picture");
    const button = create("button", "open");
    button.type = "button";
    button.setAttribute("aria-label", `Open ${row.name}`);
    if (row.thumb) button.append(picture(row.thumb, "thumb", ""));
    else button.append(create("span", "none", "no picture"));
    if (row.map) button.append(picture(row.map, "map", ""));
    button.addEventListener("click", () => view(index));
    cell.append(button);
    return cell;
  }

  function scoreCell(row) {
    const cell = create("td", "score");
    if (row.score === undefined) {
      cell.append(create("span", "error", row.error || "no score"));
      return cell;
    }
    const bar = create("span", "bar");
    const fill = create("span", "fill");
    fill.style.width = `${100 * row.score}%`;
    bar.append(fill);
    cell.append(create("span", "number", scoreText(row.score)), bar);
    cell.title = String(row.score);
    return cell;
  }

  function nameCell(row) {
    const cell = create("td", "name");
    cell.append(create("bdi", "", row.name));
    const text = (value) => (typeof value === "number" ? scoreText(value) : value);
    const details = (row.details || []).map(([name, value]) => `${name} ${text(value)}`);
    if (details.length) cell.append(create("span", "details", details.join(" · ")));
    return cell;
  }

  function verdictCell(row) {
    const cell = create("td", "verdict");
    if (row.verdict) {
      const chip = create("span", "chip", row.verdict);
      chip.dataset.verdict = row.verdict;
      cell.append(chip);
    }
    return cell;
  }

  function tableRow(row, index) {
    const line = create("tr");
    line.append(pictureCell(row, index), nameCell(row), scoreCell(row));
    if (element("verdict")) line.append(verdictCell(row));
    return line;
  }

  function bound(id, otherwise) {
    const value = element(id).valueAsNumber;
    return Number.isNaN(value) ? otherwise : value;
  }

  function passing() {
    const text = element("text").value.trim().toLowerCase();
    const low = bound("low", 0);
    const high = bound("high", 1);
    const verdict = element("verdict") ? element("verdict").value : "";
    const errors = element("errors").checked;
    const all = low <= 0 && high >= 1; // images without a score pass unless a range is asked for
    return rows.filter(
      (row) =>
        row.lower.includes(text) &&
        (!verdict || row.verdict === verdict) &&
        (errors
          ? row.score === undefined
          : row.score === undefined
            ? all
            : row.score >= low && row.score <= high),
    );
  }

  // Images that lack what is sorted by come last in both directions.
  function comparison(key, direction) {
    return (a, b) => {
      if (key === "order") return a.order - b.order;
      const missing = (a[key] === undefined) - (b[key] === undefined);
      if (missing || a[key] === undefined) return missing || a.order - b.order;
      const order = key === "score" ? a.score - b.score : collator.compare(a[key], b[key]);
      return direction * order || a.order - b.order;
    };
  }

  function sorting() {
    const [key, direction] = element("sort").value.split(":");
    return { key, direction: Number(direction) };
  }

  function update() {
    const { key, direction } = sorting();
    found = passing().sort(comparison(key, direction));
    for (const heading of headings) {
      const sorted = heading.dataset.sort === key;
      const value = !sorted ? "none" : direction > 0 ? "ascending" : "descending";
      heading.closest("th").setAttribute("aria-sort", value);
    }
    show(0);
  }

  function show(number) {
    const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
    page = Math.min(Math.max(number, 0), pages - 1);
    const first = page * PER_PAGE;
    const part = found.slice(first, first + PER_PAGE);
    body.replaceChildren(...part.map((row, index) => tableRow(row, first + index)));
    const count = (value) => value.toLocaleString("en");
    element("count").textContent = `${count(found.length)} of ${count(rows.length)} images`;
    element("place").textContent = `Page ${count(page + 1)} of ${count(pages)}`;
    element("previous").disabled = page === 0;
    element("next").disabled = page === pages - 1;
  }

  function turn(step) {
    show(page + step);
    element("images").scrollIntoView({ block: "start" });
  }

  function fact(name, value, className) {
    const pair = create("div");
    pair.append(create("dt", "", name), create("dd", className || "", value));
    return pair;
  }

  function view(index) {
    viewed = Math.min(Math.max(index, 0), found.length - 1);
    const row = found[viewed];
    const place = (id, content) => {
      element(id).hidden = !content;
      if (content) element(id).src = `data:image/webp;base64,${content}`;
      else element(id).removeAttribute("src");
    };
    place("viewer-image", row.thumb);
    place("viewer-map", row.map);
    element("viewer-hint").hidden = !row.map;
    element("viewer-name").textContent = row.name;
    const facts = [];
    if (row.score !== undefined) facts.push(fact("Score", String(row.score)));
    if (row.error) facts.push(fact("Error", row.error, "error"));
    if (row.verdict) facts.push(fact("Verdict", row.verdict));
    for (const [name, value] of row.details || []) facts.push(fact(name, String(value)));
    if (row.mask) facts.push(fact("Heat map in full", row.mask));
    element("viewer-facts").replaceChildren(...facts);
    element("viewer-previous").disabled = viewed === 0;
    element("viewer-next").disabled = viewed === found.length - 1;
    if (!element("viewer").open) element("viewer").showModal();
    element("viewer").scrollTop = 0;
  }

  function closeViewer() {
    const last = Math.floor(viewed / PER_PAGE);
    if (last !== page) show(last);
    const button = body.rows[viewed - page * PER_PAGE]?.querySelector("button");
    if (button) button.focus();
  }

  filters.addEventListener("input", update);
  filters.addEventListener("submit", (event) => event.preventDefault());
  filters.addEventListener("reset", () => setTimeout(update));
  for (const heading of headings) {
    heading.addEventListener("click", () => {
      const { key, direction } = sorting();
      const first = heading.dataset.sort === "score" ? -1 : 1;
      const next = key === heading.dataset.sort ? -direction : first;
      element("sort").value = `${heading.dataset.sort}:${next}`;
      update();
    });
  }
  element("previous").addEventListener("click", () => turn(-1));
  element("next").addEventListener("click", () => turn(1));
  element("viewer-previous").addEventListener("click", () => view(viewed - 1));
  element("viewer-next").addEventListener("click", () => view(viewed + 1));
  element("viewer-close").addEventListener("click", () => element("viewer").close());
  element("viewer").addEventListener("close", closeViewer);
  element("viewer").addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") view(viewed - 1);
    if (event.key === "ArrowRight") view(viewed + 1);
  });
  update();
})();
