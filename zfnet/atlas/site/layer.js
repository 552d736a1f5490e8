/*
 * The page of a layer: all its maps, sorted and filtered.
 *
 * Only the lines of the list that are near the window are in the page, so that 50,000 maps are as fast as fifty. The
 * order by each column is computed once; a sort or a filter then walks along it.
 */
"use strict";

(() => {
  const { el, number, percent, address, count } = atlas;
  const NEAR = 400; // pixels above and below the window in which lines are drawn

  const ROWS = 2 ** 20; // more than a layer has
  const GAP = 10; // pixels between tiles

  const SORTS = {
    map: ["map number", "asc", (columns, row) => String(columns.map[row])],
    strength: ["strongest value", "desc", (columns, row) => number(columns.strength[row])],
    fires: ["share of images on which it fires", "desc", (columns, row) => percent(columns.fires[row])],
    selectivity: ["class selectivity", "desc", (columns, row) => number(columns.selectivity[row])],
    focus: ["focus of its projections", "asc", (columns, row) => percent(columns.focus[row])],
    class: ["preferred class", "asc", (columns, row) => atlas.source.className(columns.class[row]) ?? "–"],
  };
  const MEANING = {
    map: "",
    strength: "The strongest value of the map in any image.",
    fires: "On how many of the images the map is above zero somewhere.",
    selectivity: "0: the same mean for every class; 1: only one class (Morcos et al. 2018).",
    focus: "The smallest share of the crop that holds half of the projection: small is focused on few pixels.",
    class: "The class whose images have the largest mean; below it, the map's number.",
  };

  /** The classes' places in the order of their names. */
  function ranks() {
    const { classes } = atlas.index;
    const sorted = Array.from(classes.keys()).sort((a, b) =>
      classes[a] < classes[b] ? -1 : classes[a] > classes[b] ? 1 : a - b,
    );
    const found = [];
    sorted.forEach((label, rank) => (found[label] = rank));
    return found;
  }

  /**
   * The rows by a column, ascending, equal ones by their row; rows without a value come last, whichever way the list is
   * read. Numbers are sorted natively, which is ten times as fast as with a function that compares: each holds the value,
   * as the 32 bits of a float in their order, and its row.
   */
  function order(columns, name) {
    let keys = columns[name];
    if (name === "class") {
      const places = ranks(); // of one class, those with the most of their nine of it come first
      keys = keys.map((label, row) => (label < 0 ? null : (places[label] ?? label) + 0.9 * (1 - columns.agree[row])));
    }
    const floats = Float32Array.from(keys, (key) => key ?? 0);
    const bits = new Uint32Array(floats.buffer);
    const packed = new Float64Array(keys.length);
    const last = [];
    let many = 0;
    keys.forEach((key, row) => {
      if (key === null) return last.push(row);
      const one = key === 0 ? 0 : bits[row];
      packed[many++] = (one >>> 31 ? 0xffffffff - one : one + 0x80000000) * ROWS + row;
    });
    return { valued: Array.from(packed.subarray(0, many).sort(), (both) => both % ROWS), last };
  }

  /** The class that an address names: by its name, or by its number where two have the same name. */
  function classOf(text) {
    if (text === undefined) return null;
    const { classes } = atlas.index;
    const found = classes.indexOf(text);
    if (found >= 0) return found;
    if (/^\d+$/.test(text) && Number(text) < classes.length) return Number(text);
    throw new atlas.Sorry(`This atlas has no class “${text}”.`);
  }

  function nameOf(label) {
    const { classes } = atlas.index;
    return classes.indexOf(classes[label]) === label && !/^\d+$/.test(classes[label]) ? classes[label] : String(label);
  }

  /** What the address asks for. */
  function wish(query) {
    const sort = query.sort ?? "map";
    if (!(sort in SORTS))
      throw new atlas.Sorry(`The maps cannot be sorted by “${sort}”; sort them by ${Object.keys(SORTS).join(", ")}.`);
    const min = Number(query.min ?? 0);
    const views = atlas.index.pixels === "none" ? ["projection"] : ["both", "crop", "projection"];
    return {
      sort,
      order: query.order === "asc" || query.order === "desc" ? query.order : SORTS[sort][1],
      label: classOf(query.class),
      min: min >= 0 && min <= 1 ? min : 0,
      hidden: query.dead === "hide",
      view: views.includes(query.view) ? query.view : views[0],
    };
  }

  atlas.pages.layer = async (container, { parts: [name], query }) => {
    const { index, source } = atlas;
    const L = source.layerOf(name);
    if (L < 0)
      throw new atlas.Sorry(
        `This atlas has no layer “${name}”. It has: ${index.layers.map((layer) => layer.name).join(", ")}.`,
      );
    const layer = index.layers[L];
    const columns = await atlas.load(`columns/${L}`);
    const orders = new Map();
    let state = wish(query);
    let rows = [];

    /** The rows to show, in order. */
    function choose() {
      if (!orders.has(state.sort)) orders.set(state.sort, order(columns, state.sort));
      const { valued, last } = orders.get(state.sort);
      const list = [...(state.order === "asc" ? valued : valued.slice().reverse()), ...last];
      const { label, min, hidden } = state;
      if (label === null && min === 0 && !hidden) return list;
      return list.filter(
        (row) =>
          (label === null || columns.class[row] === label) &&
          columns.fires[row] >= min &&
          !(hidden && columns.dead[row]),
      );
    }

    /** Change the address by what was chosen; the rest of it stays. */
    function change(changes, options) {
      const next = { ...state, ...changes };
      const defaults = {
        sort: "map",
        order: SORTS[next.sort][1],
        view: index.pixels === "none" ? "projection" : "both",
      };
      const kept = Object.fromEntries(
        Object.entries(defaults).map(([key, value]) => [key, next[key] === value ? null : next[key]]),
      );
      const filters = {
        class: next.label === null ? null : nameOf(next.label),
        min: next.min || null,
        dead: next.hidden ? "hide" : null,
      };
      atlas.navigate(address.layer(name, { ...kept, ...filters }), options);
    }

    // the controls
    const option = (value, text, chosen) => el("option", { value, selected: chosen }, text);
    const sort = el(
      "select",
      { id: "sort", onchange: () => change({ sort: sort.value, order: SORTS[sort.value][1] }) },
      Object.entries(SORTS).map(([key, [text]]) => option(key, text)),
    );
    const direction = el("button", {
      type: "button",
      class: "direction",
      onclick: () => change({ order: state.order === "asc" ? "desc" : "asc" }),
    });
    const counts = new Map();
    for (const label of columns.class) counts.set(label, (counts.get(label) ?? 0) + 1);
    const labels = [...counts.keys()]
      .filter((label) => label >= 0)
      .sort((a, b) => (source.className(a) < source.className(b) ? -1 : 1));
    const classes = el(
      "select",
      { id: "class", onchange: () => change({ label: classes.value === "" ? null : Number(classes.value) }) },
      option("", "any"),
      labels.map((label) => option(label, `${atlas.short(source.className(label), 40)} (${counts.get(label)})`)),
    );
    const least = el("input", {
      id: "min",
      type: "number",
      min: 0,
      max: 100,
      step: "any",
      inputmode: "decimal",
      oninput: () => change({ min: Math.min(Math.max(Number(least.value) || 0, 0), 100) / 100 }, { replace: true }),
    });
    const dead = el("input", { id: "dead", type: "checkbox", onchange: () => change({ hidden: dead.checked }) });
    const views = (index.pixels === "none" ? ["projection"] : ["both", "crop", "projection"]).map((view) =>
      el(
        "button",
        { type: "button", "data-view": view, onclick: () => change({ view }) },
        { both: "Both", crop: "Crops", projection: "Projections" }[view],
      ),
    );
    const said = el("p", { class: "said", role: "status", "aria-live": "polite" });
    const meaning = el("p", { class: "meaning" });
    const controls = el(
      "form",
      { class: "controls", "aria-label": "Sort and filter", onsubmit: (event) => event.preventDefault() },
      el(
        "span",
        { class: "field" },
        el("label", { for: "sort" }, "Sort by"),
        el("span", { class: "joined" }, sort, direction),
      ),
      index.classes.length
        ? el("span", { class: "field" }, el("label", { for: "class" }, "Preferred class"), classes)
        : null,
      el(
        "span",
        { class: "field" },
        el("label", { for: "min" }, "Fires on at least"),
        el("span", { class: "joined" }, least, el("span", { class: "unit" }, "%")),
      ),
      el("span", { class: "field check" }, dead, el("label", { for: "dead" }, `Hide the dead (${number(layer.dead)})`)),
      views.length > 1
        ? el("span", { class: "field switch", role: "group", "aria-label": "What is shown" }, views)
        : null,
    );

    // the list
    const list = el("ul", { class: "maps", "aria-label": `Maps of ${name}` });
    const target = window.innerWidth < 560 ? 48 : 64;
    const scale = atlas.scaleTo(layer.overview, target);
    const [tall, wide] = layer.overview.map((side) => side * scale);
    const single = layer.overview.map((side) => side * atlas.scaleTo(layer.overview, target * 1.25));
    let lines = new Map();
    let across = 0;
    let width = 0;

    function cell(row, place) {
      const map = columns.map[row];
      const places = state.view === "both" ? [0, 1] : [state.view === "crop" ? 0 : 1];
      const side = state.view === "both" ? [tall, wide] : single;
      const picture = columns.dead[row]
        ? el(
            "span",
            { class: "dead", style: { width: `${side[1] * places.length}px`, height: `${side[0]}px` } },
            "dead",
          )
        : places.map((which) => atlas.tile(L, row, "overview", which, { scale: side[0] / layer.overview[0] }));
      const value = state.sort === "map" ? "" : SORTS[state.sort][2](columns, row);
      const caption = el(
        "span",
        { class: "caption" },
        el("b", {}, el("span", { class: "unseen" }, "map "), map),
        value ? el("span", {}, value) : null,
      );
      const line = Math.floor(place / across);
      const style = {
        width: `${cellWidth()}px`,
        top: `${line * (cellHeight() + GAP)}px`,
        left: `${(place - line * across) * (cellWidth() + GAP)}px`,
      };
      return el(
        "li",
        { "aria-setsize": rows.length, "aria-posinset": place + 1, style },
        el(
          "a",
          { href: address.map(name, map), title: `map ${map}${value ? `: ${value}` : ""}` },
          el("span", { class: "pair" }, picture),
          caption,
        ),
      );
    }

    const cellWidth = () => Math.max(state.view === "both" ? 2 * wide : single[1], 64) + 2;
    const cellHeight = () => (state.view === "both" ? tall : single[0]) + 30;

    /** Draw the lines near the window; lines that are there already stay, with the focus that is in them. */
    function draw(afresh = false) {
      if (!list.isConnected) return;
      const now = list.clientWidth;
      if (now !== width || afresh) {
        width = now;
        lines = new Map();
        list.replaceChildren();
        across = Math.max(1, Math.floor((width + GAP) / (cellWidth() + GAP)));
        list.style.height = `${Math.ceil(rows.length / across) * (cellHeight() + GAP)}px`;
      }
      const step = cellHeight() + GAP;
      const above = -list.getBoundingClientRect().top;
      const first = Math.max(0, Math.floor((above - NEAR) / step));
      const end = Math.min(Math.ceil(rows.length / across), Math.ceil((above + window.innerHeight + NEAR) / step));
      for (const [line, items] of lines) {
        if ((line < first || line >= end) && !items.some((item) => item.contains(document.activeElement))) {
          for (const item of items) item.remove();
          lines.delete(line);
        }
      }
      for (let line = first; line < end; line++) {
        if (lines.has(line)) continue;
        const items = rows.slice(line * across, (line + 1) * across).map((row, i) => cell(row, line * across + i));
        const next = [...lines.keys()].filter((other) => other > line).sort((a, b) => a - b)[0];
        lines.set(line, items);
        const fragment = document.createDocumentFragment();
        fragment.append(...items);
        list.insertBefore(fragment, next === undefined ? null : lines.get(next)[0]);
      }
    }

    function apply() {
      rows = choose();
      sort.value = state.sort;
      direction.textContent = state.order === "asc" ? "↑" : "↓";
      direction.setAttribute(
        "aria-label",
        state.order === "asc" ? "Ascending; reverse the order" : "Descending; reverse the order",
      );
      classes.value = state.label === null ? "" : String(state.label);
      if (document.activeElement !== least)
        least.value = state.min ? String(Number((100 * state.min).toPrecision(4))) : "";
      dead.checked = state.hidden;
      for (const view of views) view.setAttribute("aria-pressed", String(view.dataset.view === state.view));
      const some =
        rows.length === layer.rows
          ? `All ${count(rows.length, "map")}`
          : `${number(rows.length)} of ${count(layer.rows, "map")}`;
      said.textContent = `${some}, by ${SORTS[state.sort][0]}, ${state.order === "asc" ? "ascending" : "descending"}.${layer.dead && !state.hidden ? ` ${number(layer.dead)} of the layer are dead.` : ""}`;
      meaning.textContent = MEANING[state.sort];
      empty.hidden = rows.length > 0;
      draw(true);
    }

    const empty = el(
      "p",
      { class: "empty", hidden: true },
      "No map of this layer passes these filters. ",
      el("a", { href: address.layer(name) }, "Show all."),
    );
    let waiting = false;
    const later = () => {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        draw();
      });
    };
    const sizes = new ResizeObserver(later);
    window.addEventListener("scroll", later, { passive: true });

    const beside = (where, sign, text) => {
      const other = index.layers[where];
      return other
        ? el(
            "a",
            { class: "button", href: address.layer(other.name), title: `${text}: ${other.name}` },
            sign === "←" ? `← ${other.name}` : `${other.name} →`,
            el("span", { class: "unseen" }, ` (${text.toLowerCase()})`),
          )
        : null;
    };
    const facts = [
      ["Operation", layer.operation],
      ["Maps", layer.rows === layer.maps ? number(layer.maps) : `${number(layer.rows)} of ${number(layer.maps)}`],
      ["Size of a map", area2(layer.size)],
      [
        "A unit sees",
        layer.field
          ? `${atlas.area(layer.field)} pixels${layer.whole ? ": more than the image, so its tiles are whole images" : ""}`
          : "an area that is not known, so its tiles are whole images",
      ],
      layer.exact === false ? ["Decided by", atlas.DECIDED] : null,
      ["Step between units", layer.field_stride ? `${atlas.area(layer.field_stride)} pixels` : "unknown"],
      layer.kernel_of ? ["Last convolution", layer.kernel_of] : null,
    ];
    atlas.add(
      container,
      el(
        "div",
        { class: "heading" },
        el("h1", { tabindex: -1 }, name),
        el("span", { class: "buttons" }, beside(L - 1, "←", "Layer below"), beside(L + 1, "→", "Layer above")),
      ),
      el(
        "dl",
        { class: "row-facts" },
        facts.filter(Boolean).map(([term, text]) => el("div", {}, el("dt", {}, term), el("dd", {}, text))),
      ),
      layer.fields
        ? el(
            "p",
            { class: "meaning" },
            "The maps of this layer see areas of different sizes; tiles have room for the largest, and the rest of a smaller one is white.",
          )
        : null,
      layer.clipped
        ? el(
            "p",
            { class: "meaning" },
            "This layer clips its values at its top. Its maps are ranked and counted by the values before that, because all strong values are equal after it.",
          )
        : null,
      controls,
      said,
      meaning,
      empty,
      list,
      el(
        "p",
        { class: "meaning" },
        "Each pair: the strongest crop of the map and its projection. Grey is zero; each projection has its own scale.",
        index.pixels === "none" ? " This atlas holds no photographs." : "",
      ),
    );
    return {
      title: name,
      where: [[name, address.layer(name)]],
      before: () => index.layers[L - 1] && address.layer(index.layers[L - 1].name),
      after: () => index.layers[L + 1] && address.layer(index.layers[L + 1].name),
      shown() {
        apply();
        sizes.observe(list);
      },
      scrolled: () => draw(),
      update(place) {
        const before = state;
        try {
          state = wish(place.query);
        } catch (error) {
          said.textContent = error.message;
          return;
        }
        const top = list.getBoundingClientRect().top + window.scrollY;
        apply();
        // the best of a new order are at its top: a reader in the middle of the list is brought there
        if (
          before.sort !== state.sort ||
          before.order !== state.order ||
          before.label !== state.label ||
          before.min !== state.min
        ) {
          const head = Math.max(0, top - controls.offsetHeight - 60);
          if (window.scrollY > head) window.scrollTo({ top: head, behavior: "instant" });
        }
        draw();
      },
      leave() {
        sizes.disconnect();
        window.removeEventListener("scroll", later);
      },
    };
  };

  const area2 = (size) => (size ? `${atlas.area(size)} units` : "unknown");
})();
