/*
 * The core of the atlas: its data, its addresses, and how an element is made.
 *
 * The data are scripts that call `atlas.put(name, value)`, because a page opened by double click may not fetch a file.
 * An address is all that there is to a page's state: #/<page>?<choices>. A page is a function (container, address) in
 * `atlas.pages`; it fills the container and returns what the router has to know: { title, update, shown, leave }.
 * Text comes into the page as text nodes only, never as HTML: names of classes and files are anybody's.
 */
"use strict";

window.atlas = (() => {
  const sources = new Map();

  /** A sentence for the reader of the page; not a fault of the program. */
  class Sorry extends Error {}

  /** One atlas: this one, or another one that it is compared with. */
  class Source {
    /** @param {string} folder where it lies, as an address that ends in "/"; "" for this one. */
    constructor(folder) {
      this.folder = folder;
      this.files = new Map();
      this.values = new Map();
      this.rows = new Map();
      this.again = 0;
      sources.set(folder, this);
    }

    get index() {
      return this.values.get("index");
    }

    /**
     * Data by name: "index", "images", "columns/<layer>", "maps/<layer>/<shard>", "winners/<shard>".
     * @returns {Promise<any>}
     */
    load(name) {
      if (this.values.has(name)) return Promise.resolve(this.values.get(name));
      if (!this.files.has(name)) {
        const path =
          this.folder + "data/" + name.replace(/^maps\//, "").replace(/^columns\/(.*)$/, "$1/columns") + ".js";
        const file = new Promise((resolve, reject) => {
          const script = document.createElement("script");
          const fail = (reason) => {
            this.files.delete(name);
            this.again++;
            reject(new Sorry(`The file ${path} ${reason}. Is the atlas' folder complete?`));
          };
          script.src = this.again ? `${path}?again=${this.again}` : path; // past what the browser keeps of a broken file
          script.dataset.folder = this.folder;
          script.onload = () => {
            script.remove();
            if (this.values.has(name)) resolve(this.values.get(name));
            else fail("is damaged");
          };
          script.onerror = () => {
            script.remove();
            fail("could not be read");
          };
          document.head.append(script);
        });
        this.files.set(name, file);
      }
      return this.files.get(name);
    }

    /** The address of one of its files. */
    path(file) {
      return this.folder + file;
    }

    /** The number of the layer of this name, or -1. */
    layerOf(name) {
      return this.index.layers.findIndex((layer) => layer.name === name);
    }

    /**
     * Where a map is in the lists of its layer: its number, unless the atlas has only some of the maps.
     * @returns {Promise<number>} -1 where the atlas does not have it.
     */
    async row(layer, map) {
      const { maps, rows } = this.index.layers[layer];
      if (rows === maps) return Number.isInteger(map) && map >= 0 && map < maps ? map : -1;
      if (!this.rows.has(layer)) {
        const columns = await this.load(`columns/${layer}`);
        this.rows.set(layer, new Map(columns.map.map((number, row) => [number, row])));
      }
      return this.rows.get(layer).get(map) ?? -1;
    }

    /** All that is known of one map. */
    async map(layer, row) {
      const per = this.index.layers[layer].per.maps;
      const shard = await this.load(`maps/${layer}/${Math.floor(row / per)}`);
      return shard[row % per];
    }

    /** The name, class and size of images: a function of an image's number. */
    async names() {
      const images = await this.load("images");
      return (id) => {
        const place = position(images.id, id);
        if (place < 0) return null;
        return { place, file: images.file[place], label: images.label[place], size: images.size[place] };
      };
    }

    /** The name of a class, or null for images without one. */
    className(label) {
      return label < 0 ? null : (this.index.classes[label] ?? `class ${label}`);
    }
  }

  /** Where a number is in an ascending list, or -1. */
  function position(list, number) {
    let [low, high] = [0, list.length - 1];
    while (low <= high) {
      const middle = (low + high) >> 1;
      if (list[middle] === number) return middle;
      if (list[middle] < number) low = middle + 1;
      else high = middle - 1;
    }
    return -1;
  }

  /** Called by each file of data, with its name and its content. */
  function put(name, value) {
    const folder = document.currentScript?.dataset.folder ?? "";
    sources.get(folder)?.values.set(name, value);
  }

  // --- elements ---

  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes ?? {})) {
      if (value === null || value === undefined || value === false) continue;
      if (typeof value === "function") element.addEventListener(name.replace(/^on/, ""), value);
      else if (name === "style") Object.assign(element.style, value);
      else if (value === true) element.setAttribute(name, "");
      else element.setAttribute(name, value);
    }
    element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
    return element;
  }

  /**
   * An element of HTML. A function among the attributes listens to the event of its name ("onclick"); text is text.
   * @returns {HTMLElement}
   */
  const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);

  /** Add children to an element, as `el` does. */
  const add = (element, ...children) => fill(element, {}, children);

  /** The same for SVG. @returns {SVGElement} */
  const svg = (tag, attributes, ...children) =>
    fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

  // --- numbers as text ---

  /** A number of any size, with four digits. */
  function number(value) {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    const size = Math.abs(value);
    if (Number.isInteger(value) && size < 1e6) return value.toLocaleString("en");
    if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace("e+", "e").replace("-", "−");
    const short = Number(value.toPrecision(4));
    return (Number.isInteger(short) ? short.toLocaleString("en") : String(short)).replace("-", "−");
  }

  /** A share of 1 in per cent. */
  function percent(value) {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    if (value > 0 && value < 0.001) return "< 0.1 %";
    if (value > 0.999 && value < 1) return "> 99.9 %";
    return `${Number((100 * value).toPrecision(3))} %`;
  }

  /** Rows x columns; "unknown" without them. */
  const area = (size) => (size ? `${number(size[0])} × ${number(size[1])}` : "unknown");

  /** "1 map", "2 maps". */
  const count = (many, noun) => `${many.toLocaleString("en")} ${noun}${many === 1 ? "" : "s"}`;

  /** A long name, cut in its middle: the ends of file names tell them apart. */
  function short(name, most = 22) {
    return name.length <= most
      ? name
      : `${name.slice(0, Math.ceil(most / 2) - 1)}…${name.slice(-Math.floor(most / 2))}`;
  }

  // --- addresses ---

  /** "?a=1&b=2" of the choices that have a value. */
  function choices(query) {
    const some = Object.entries(query ?? {}).filter(
      ([, value]) => value !== null && value !== undefined && value !== "",
    );
    return some.length ? "?" + some.map(([name, value]) => `${name}=${encodeURIComponent(value)}`).join("&") : "";
  }

  const address = {
    overview: () => "#/",
    layer: (name, query) => `#/layer/${encodeURIComponent(name)}${choices(query)}`,
    map: (name, map, query) => `#/${encodeURIComponent(name)}/${map}${choices(query)}`,
    image: (id, query) => `#/image/${id}${choices(query)}`,
    units: (units, query) =>
      `#/units/${units.map(([name, map]) => `${encodeURIComponent(name)}:${map}`).join(",")}${choices(query)}`,
    search: (text) => `#/search${choices({ q: text })}`,
  };

  function decode(text) {
    try {
      return decodeURIComponent(text);
    } catch {
      return text; // a "%" that was typed
    }
  }

  /**
   * What an address says: the page, its parts, its choices. A layer's name may hold slashes, as they are or as %2F.
   * @returns {{page: string, parts: string[], query: Object<string, string>, key: string}}
   */
  function read(hash) {
    const [path, question = ""] = hash.replace(/^#?\/?/, "").split(/\?(.*)/s);
    const query = Object.fromEntries(new URLSearchParams(question));
    const parts = path.split("/").filter((part) => part !== "");
    const rest = decode(parts.slice(1).join("/"));
    const says = (page, ...arguments_) => ({ page, parts: arguments_, query, key: [page, ...arguments_].join("/") });
    const { layers } = home.index;
    const map = parts.length > 1 && layers.find((layer) => layer.name === decode(parts.slice(0, -1).join("/")));
    if (!parts.length) return says("overview");
    if (parts[0] === "layer" && (!map || layers.some((layer) => layer.name === rest))) return says("layer", rest);
    if (map) return says("map", map.name, decode(parts[parts.length - 1]));
    if (["image", "own", "search", "units"].includes(parts[0])) {
      return says(parts[0], parts[0] === "units" ? parts.slice(1).join("/") : rest);
    }
    if (parts.length > 1) return says("map", decode(parts.slice(0, -1).join("/")), decode(parts[parts.length - 1]));
    return says("nowhere", decode(parts[0]));
  }

  // --- the router ---

  const home = new Source("");
  const pages = {};
  const scrolls = JSON.parse(sessionOf("scrolls") ?? "{}");
  let turn = 0;
  let current = null;
  let entry = null;

  function sessionOf(name) {
    try {
      return sessionStorage.getItem(name);
    } catch {
      return null; // forbidden by the browser's settings
    }
  }

  /** Go to an address; `replace` leaves no step for the browser's Back. */
  function navigate(hash, { replace = false } = {}) {
    if (replace) {
      history.replaceState(history.state, "", hash);
      show();
    } else {
      location.hash = hash;
    }
  }

  function nowhere(container, message) {
    container.append(
      el("h1", { tabindex: -1 }, "Page not found"),
      el("p", { class: "notice", role: "alert" }, message),
      el(
        "p",
        { class: "buttons" },
        el("a", { class: "button", href: "#/" }, "To the overview"),
        el("button", { type: "button", onclick: () => show(true) }, "Try again"),
      ),
    );
    return { title: "Page not found" };
  }

  pages.nowhere = (container, { page, parts }) =>
    nowhere(container, `There is no page “${page === "nowhere" ? parts[0] : page}” in this atlas.`);

  /** Draw the page of the address, or let the page that is shown take what has changed. */
  async function show(afresh = false) {
    const ticket = ++turn;
    const known = history.state?.entry;
    const next = known ?? `${Date.now()}.${ticket}`;
    const moved = next !== entry;
    if (!known) history.replaceState({ entry: next }, "");
    const container = el("div", { class: "page" });
    let place;
    let page;
    try {
      await home.load("index");
      place = read(location.hash);
      if (!afresh && current?.key === place.key && current.update) {
        entry = next;
        current.update(place);
        mark(current);
        if (known && moved) restore();
        return;
      }
      const make = pages[place.page] ?? pages.nowhere;
      page = (await make(container, place)) ?? {};
    } catch (error) {
      if (!(error instanceof Sorry)) console.error(error);
      container.replaceChildren();
      page = nowhere(
        container,
        error instanceof Sorry ? error.message : `This page could not be drawn: ${error.message}. A file of the atlas may be damaged; experiment=atlas check=FOLDER finds it.`,
      );
    }
    if (ticket !== turn) return; // the reader has gone on
    const first = current === null;
    entry = next;
    if (!known) delete scrolls[entry];
    current?.leave?.();
    current = { ...page, key: place?.key };
    document.getElementById("main").replaceChildren(container);
    mark(current);
    current.shown?.();
    const title = container.querySelector("h1");
    const writing = document.activeElement?.id === "find";
    if (!first && !afresh && !writing) title?.focus({ preventScroll: true });
    restore();
  }

  function restore() {
    window.scrollTo({ top: scrolls[entry] ?? 0, behavior: "instant" });
    current?.scrolled?.();
  }

  function mark({ title, where = [] }) {
    const name = home.index?.title ?? "Atlas";
    document.title = title ? `${title} · ${name}` : name;
    const brand = document.querySelector(".brand");
    brand.textContent = name;
    brand.title = name;
    const steps = where.map(([text, hash]) => [
      el("span", { "aria-hidden": "true" }, "/"),
      el("a", { href: hash }, text),
    ]);
    document.querySelector(".where").replaceChildren(...steps.flat());
  }

  /** Say something in the corner of the page; twice the same is said once. */
  function tell(text) {
    const corner = document.getElementById("notices");
    if ([...corner.children].some((line) => line.firstChild.textContent === text)) return;
    const line = el(
      "p",
      {},
      el("span", {}, text),
      el("button", { type: "button", "aria-label": "Close this message", onclick: () => line.remove() }, "×"),
    );
    corner.append(line);
  }

  /** To a map that is drawn by lot. */
  function random() {
    const { layers } = home.index;
    let lot = Math.floor(Math.random() * layers.reduce((sum, layer) => sum + layer.rows, 0));
    const layer = layers.findIndex(({ rows }) => (lot -= rows) < 0);
    const row = lot + layers[layer].rows;
    return numberOf(home, layer, row).then((map) => navigate(address.map(layers[layer].name, map, viewOf())));
  }

  /** The number of the map in this row of a layer's lists. */
  async function numberOf(source, layer, row) {
    const { maps, rows } = source.index.layers[layer];
    return maps === rows ? row : (await source.load(`columns/${layer}`)).map[row];
  }

  /** The view of the map that is shown, to be kept on the way to another map. */
  const viewOf = () => (current?.key?.startsWith("map/") ? { view: current.view?.() } : {});

  history.scrollRestoration = "manual";
  window.addEventListener("hashchange", () => {
    if (location.hash !== "#main") show();
  });
  window.addEventListener("scroll", () => (scrolls[entry] = Math.round(window.scrollY)), { passive: true });
  window.addEventListener("pagehide", () => {
    try {
      sessionStorage.setItem("scrolls", JSON.stringify(scrolls));
    } catch {
      // forbidden by the browser's settings: a reload then begins at the top
    }
  });
  window.addEventListener("DOMContentLoaded", () => {
    document.querySelector(".skip").addEventListener("click", (event) => {
      event.preventDefault();
      document.getElementById("main").focus();
    });
    show();
  });

  return {
    Source,
    Sorry,
    source: home,
    sources,
    put,
    pages,
    address,
    navigate,
    random,
    tell,
    numberOf,
    viewOf,
    el,
    add,
    svg,
    number,
    percent,
    area,
    count,
    short,
    position,
    read,
    load: (name) => home.load(name),
    show: () => show(true),
    get index() {
      return home.index;
    },
    get current() {
      return current;
    },
  };
})();
