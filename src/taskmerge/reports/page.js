"use strict";
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const kept = () => { try { return localStorage.getItem("taskmerge-theme"); } catch { return null; } };
  const isDark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const tell = () => button.setAttribute("aria-pressed", String(isDark()));
  if (["light", "dark"].includes(kept())) root.dataset.theme = kept();
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("taskmerge-theme", root.dataset.theme); } catch { /* a reader who keeps nothing */ }
    tell();
  });
  system.addEventListener("change", tell);
  tell();

  const said = document.getElementById("said");
  const written = (cell) => cell.firstChild ? cell.firstChild.textContent : "";
  const number = (text) => {
    const found = /^[≥≤]? ?([-+−]?[\d,]*\.?\d+(?:e[-+]?\d+)?)/.exec(text);
    return found ? parseFloat(found[1].replace(/,/g, "").replace("−", "-")) : NaN;
  };
  const empty = (text) => text === "–" || text === "";
  const compared = (a, b) => {
    const x = number(a), y = number(b);
    if (!Number.isNaN(x) && !Number.isNaN(y)) return x - y;
    return a < b ? -1 : a > b ? 1 : 0;
  };
  for (const table of document.querySelectorAll("table")) {
    const body = table.tBodies[0], first = [...body.rows], heads = [...table.tHead.rows[0].cells];
    if (first.length < 2) continue;
    heads.forEach((head, column) => {
      const press = document.createElement("button");
      press.type = "button";
      press.append(...head.childNodes);
      head.append(press);
      head.setAttribute("aria-sort", "none");
      press.addEventListener("click", () => {
        const texts = new Map(first.map((row) => [row, written(row.cells[column])]));
        const numeric = first.some((row) => !Number.isNaN(number(texts.get(row))));
        const order = numeric ? ["descending", "ascending", "none"] : ["ascending", "descending", "none"];
        const next = order[(order.indexOf(head.getAttribute("aria-sort")) + 1) % 3];
        heads.forEach((own) => own.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", next);
        const sign = next === "descending" ? -1 : 1;
        const rows = next === "none" ? first : [...first].sort((a, b) => {
          const x = texts.get(a), y = texts.get(b);
          return empty(x) - empty(y) || sign * compared(x, y);
        });
        body.append(...rows);
        said.textContent = next === "none" ? "In its own order" : `Sorted by ${press.textContent}, ${next}`;
      });
    });
  }
  const reachable = () => {
    for (const box of document.querySelectorAll(".scroll")) {
      if (box.scrollWidth <= box.clientWidth) { box.removeAttribute("tabindex"); continue; }
      box.tabIndex = 0;
      box.setAttribute("role", "region");
      box.setAttribute("aria-label", box.querySelector("caption").textContent);
    }
  };
  addEventListener("resize", reachable);
  document.addEventListener("toggle", reachable, true);
  reachable();

  const tip = document.getElementById("tip");
  const show = (text, x, y) => {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(x + 12, innerWidth - box.width - 4))}px`;
    tip.style.top = `${y + 16 + box.height > innerHeight ? Math.max(4, y - box.height - 10) : y + 16}px`;
  };
  const lines = (mark) => mark.dataset.t.replace(/; /g, "\n");
  document.querySelectorAll(".plot").forEach((plot) => {
    const marks = () => [...plot.querySelectorAll("svg")].filter((svg) => svg.getClientRects().length)
      .flatMap((svg) => [...svg.querySelectorAll("[data-t]")]);
    let at = -1;
    const left = () => { tip.hidden = true; plot.querySelectorAll(".at").forEach((mark) => mark.classList.remove("at")); };
    const hovered = (event) => {
      const mark = event.target.closest("[data-t]");
      if (mark) show(lines(mark), event.clientX, event.clientY); else tip.hidden = true;
    };
    plot.addEventListener("pointermove", hovered);
    plot.addEventListener("pointerdown", hovered);
    plot.addEventListener("pointerleave", left);
    plot.addEventListener("blur", left);
    if (!plot.querySelector("[data-t]")) return;
    plot.tabIndex = 0;
    plot.setAttribute("role", "group");
    plot.setAttribute("aria-label", `${plot.closest("figure").querySelector("h3").textContent}: arrow keys step through its values`);
    plot.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (event.key === "Escape") { left(); return; }
      const all = marks();
      if (!step && event.key !== "Home" && event.key !== "End") return;
      event.preventDefault();
      at = event.key === "Home" ? 0 : event.key === "End" ? all.length - 1 : (at + step + all.length) % all.length;
      left();
      const mark = all[at], box = mark.getBoundingClientRect();
      mark.classList.add("at");
      show(lines(mark), box.right, box.top);
      said.textContent = mark.dataset.t;
    });
  });
  addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
})();
