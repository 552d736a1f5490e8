/*
 * The page of a map: the nine units that are strongest, the map's numbers, and its neighbours in the network.
 *
 * One switch changes what each tile shows; the tiles keep their place. Around them: the histogram, examples of weaker
 * images, classes, the maps that it reads and those that read it, and the way of its strongest projection to the pixels.
 */
"use strict";

(() => {
  const { el, number, percent, area, count, address, short } = atlas;
  const VIEWS = {
    pair: ["Crop and projection", "the crop and, beside it, its projection"],
    crop: ["Crop", "the crop"],
    projection: ["Projection", "the projection"],
    masked: ["Masked crop", "the crop where 90 % of its projection is, the rest grey"],
    image: ["Whole image", "the whole photograph, with the box of what the unit sees"],
  };

  /** The views that this atlas has pictures for. */
  const viewsOf = ({ pixels }) => (pixels === "none" ? ["projection"] : Object.keys(VIEWS));

  /** The layer and map that two parts of an address name. */
  async function find(source, name, text) {
    const L = source.layerOf(name);
    if (L < 0)
      throw new atlas.Sorry(
        `This atlas has no layer “${name}”. It has: ${source.index.layers.map((layer) => layer.name).join(", ")}.`,
      );
    const map = /^\d+$/.test(text) ? Number(text) : NaN;
    const row = await source.row(L, map);
    const { maps, rows } = source.index.layers[L];
    if (row < 0 && rows < maps && map < maps)
      throw new atlas.Sorry(
        `Map ${map} of ${name} is not in this atlas: it holds ${rows} of the layer's ${maps} maps.`,
      );
    if (row < 0) throw new atlas.Sorry(`The layer ${name} has no map “${text}”: its maps are 0 to ${maps - 1}.`);
    return { L, row, map, item: await source.map(L, row) };
  }

  /** How long the longer side of a tile is on this screen. */
  function target(view) {
    const wide = window.innerWidth;
    if (view === "pair") return wide < 460 ? 75 : wide < 760 ? 100 : 112;
    if (view === "image") return wide < 460 ? 98 : 208;
    return wide < 460 ? 98 : 168;
  }

  /** One of the nine, as a picture. */
  function picture({ source, L, row, item }, view, rank, side, words) {
    const common = { source, target: side, box: item.box[rank] };
    if (view === "image")
      return atlas.whole(item.image[rank], side, { source, label: words("image"), boxes: [item.box[rank]] });
    const kinds = view === "pair" ? ["crop", "projection"] : [view];
    return el(
      "span",
      { class: "pair" },
      kinds.map((kind) => atlas.tile(L, row, kind, rank, { ...common, label: words(kind) })),
    );
  }

  /** The nine of a map as a list of tiles with their values; names come in when the images' list is read. */
  function nine(place, view, { side = target(view), brief = false, links = true } = {}) {
    const { source, L, item } = place;
    const size = view === "image" ? source.index.image_size : source.index.layers[L].tile;
    const wide =
      size[1] * (view === "image" ? side / Math.max(...size) : atlas.scaleTo(size, side)) * (view === "pair" ? 2 : 1);
    const names = [];
    const column = Math.max(wide + (view === "pair" ? 2 : 0), brief ? 1 : 78);
    const across = Math.ceil(Math.sqrt(item.value.length));
    const gap = brief ? 4 : 16;
    const list = el(
      "ol",
      {
        class: `nine ${view}`,
        style: { maxWidth: `${across * (column + gap)}px`, gridTemplateColumns: `repeat(auto-fill, ${column}px)` },
      },
      item.value.map((value, rank) => {
        const file = el("span", { class: "file" }, `image ${item.image[rank]}`);
        const label = source.className(item.label[rank]);
        const words = (what) =>
          `${what} ${rank + 1} of ${item.value.length} of map ${item.map}, from image ${item.image[rank]}`;
        const pictured = picture(place, view, rank, side, words);
        names.push({ file, pictured, id: item.image[rank] });
        return el(
          "li",
          {},
          links ? el("a", { href: address.image(item.image[rank]) }, pictured) : pictured,
          brief
            ? null
            : el(
                "span",
                { class: "value" },
                number(value),
                item.unclipped ? el("small", { title: "before the clip" }, ` (${number(item.unclipped[rank])})`) : null,
              ),
          brief || label === null ? null : el("span", { class: "label", title: label }, short(label)),
          brief ? null : file,
        );
      }),
    );
    source
      .names()
      .then((named) => {
        for (const { file, pictured, id } of names) {
          const name = named(id)?.file;
          if (!name) continue;
          file.textContent = short(name);
          file.title = name;
          for (const part of [pictured, ...pictured.querySelectorAll("[aria-label], [alt]")]) {
            for (const attribute of ["aria-label", "alt"]) {
              const words = part.getAttribute(attribute);
              if (words)
                part.setAttribute(
                  attribute,
                  words.replace(/from image .*$/, () => `from image ${name}`),
                );
            }
          }
        }
      })
      .catch((error) => atlas.tell(error.message));
    return list;
  }

  /** What the tiles show and how large, in one sentence or two. */
  function scale({ source, L, item }, view) {
    const layer = source.index.layers[L];
    if (view === "image") return `Each tile: ${VIEWS.image[1]}.`;
    const grey =
      view === "crop"
        ? ""
        : view === "masked"
          ? " Grey hides the rest."
          : " Grey is zero; each projection has its own scale.";
    return `${atlas.scaleText(layer, atlas.scaleTo(layer.tile, target(view)), item)}.${grey}`;
  }

  /** A small pair of tiles that leads to another map. */
  async function linked(source, [L, map, value], written, query) {
    const layer = source.index.layers[L];
    const row = await source.row(L, map);
    const text = [el("b", {}, `${short(layer.name, 18)} ${map}`), el("span", {}, written(value))];
    if (row < 0) return el("li", {}, el("span", { class: "absent", title: "not in this atlas" }, text));
    const pair = (source.index.pixels === "none" ? [1] : [0, 1]).map((place) =>
      atlas.tile(L, row, "overview", place, { source, target: 40, lazy: true }),
    );
    return el(
      "li",
      {},
      el(
        "a",
        { href: address.map(layer.name, map, query), title: `map ${map} of ${layer.name}` },
        el("span", { class: "pair" }, pair),
        el("span", { class: "about" }, text),
      ),
    );
  }

  /** A list of linked maps under its heading. */
  async function links(source, title, explanation, entries, written, query) {
    if (!entries?.length) return null;
    return el(
      "section",
      {},
      el("h3", {}, title),
      el("p", { class: "meaning" }, explanation),
      el("ul", { class: "links" }, await Promise.all(entries.map((entry) => linked(source, entry, written, query)))),
    );
  }

  function classes({ source, item }) {
    if (!item.classes?.length) return null;
    const { index } = source;
    const largest = Math.max(...item.classes.map(([, mean]) => Math.abs(mean)), 1e-30);
    const rows = item.classes.map(([label, mean, share]) => {
      const name = source.className(label) ?? "without a class";
      const chance = index.class_images[label] / index.images;
      return el(
        "tr",
        {},
        el("th", { scope: "row" }, el("a", { href: address.search(name), title: name }, short(name, 20))),
        el(
          "td",
          {},
          el("span", { class: "amount", style: { width: `${(32 * Math.abs(mean)) / largest}px` } }),
          number(mean),
        ),
        el("td", {}, percent(share)),
        el("td", {}, percent(chance)),
      );
    });
    const head = ["Class", "Mean", "Of nine", "Of all"].map((text) => el("th", { scope: "col" }, text));
    return el(
      "section",
      {},
      el("h2", {}, "Preferred classes"),
      el(
        "p",
        { class: "meaning" },
        "Mean of the map's maximum over the class's images; the share of the nine that are of this class, and of all images. The class with the largest mean need not be that of the nine.",
      ),
      el("table", { class: "plain" }, el("thead", {}, el("tr", {}, head)), el("tbody", {}, rows)),
    );
  }

  function examples({ source, L, row, item }) {
    if (!item.examples?.length) return null;
    const names = {
      0.9: "9 of 10 images are weaker",
      0.5: "the middle of the images",
      0.1: "9 of 10 images are stronger",
      0: "the weakest",
    };
    const none = source.index.pixels === "none";
    return el(
      "section",
      {},
      el("h2", {}, "Weaker images"),
      el(
        "p",
        { class: "meaning" },
        "Images further down its ranking, out of a sample of them: where the map is strongest in each.",
      ),
      el(
        "ol",
        { class: "examples" },
        item.examples.map(({ quantile, value, image, label }, i) => {
          const name = source.className(label);
          const tile = none
            ? null
            : atlas.tile(L, row, "example", i, {
                source,
                target: 72,
                label: `crop of image ${image}: ${names[quantile] ?? `quantile ${quantile}`}`,
              });
          return el(
            "li",
            {},
            el("a", { href: address.image(image) }, tile ?? `image ${image}`),
            el("span", { class: "value" }, number(value)),
            el("span", { class: "label" }, names[quantile] ?? `quantile ${quantile}`),
            name === null ? null : el("span", { class: "file", title: name }, short(name)),
          );
        }),
      ),
    );
  }

  function steps({ source, L, item }) {
    const layer = source.index.layers[L];
    if (!item.steps?.length) return null;
    const largest = Math.log(1 + Math.max(...item.steps));
    return el(
      "details",
      { class: "steps" },
      el("summary", {}, el("h2", {}, "Steps of its strongest projection")),
      el(
        "p",
        { class: "meaning" },
        "From the unit down to the pixels: how many numbers of the signal are not zero after each step (bars: logarithmic).",
      ),
      el(
        "div",
        { class: "wide", tabindex: 0, role: "group", "aria-label": "Steps of the projection" },
        el(
          "table",
          { class: "plain" },
          el(
            "thead",
            {},
            el(
              "tr",
              {},
              ["Step", "Operation", "Not zero"].map((text) => el("th", { scope: "col" }, text)),
            ),
          ),
          el(
            "tbody",
            {},
            layer.steps.map(([name, operation], i) =>
              el(
                "tr",
                {},
                el("th", { scope: "row" }, name),
                el("td", {}, operation),
                el(
                  "td",
                  {},
                  el("span", {
                    class: "amount",
                    style: { width: `${(120 * Math.log(1 + (item.steps[i] ?? 0))) / largest}px` },
                  }),
                  number(item.steps[i]),
                ),
              ),
            ),
          ),
        ),
      ),
    );
  }

  /** The numbers of a map as terms and values. */
  function facts({ source, L, item }) {
    const { index } = source;
    const layer = index.layers[L];
    const focus = item.focus?.length ? item.focus.reduce((sum, value) => sum + value, 0) / item.focus.length : null;
    return [
      ["Strongest value", number((item.unclipped ?? item.value)[0] ?? null)],
      ["Fires on", `${percent(item.fires)} of the images`],
      ["Mean", `${number(item.mean)}, of the maxima`],
      item.selectivity === null || item.selectivity === undefined
        ? null
        : ["Class selectivity", number(item.selectivity)],
      focus === null ? null : ["Focus", `half of a projection lies on ${percent(focus)} of the crop`],
      ["A unit sees", layer.field ? `${area(layer.whole ? layer.field : atlas.fieldOf(layer, item))} pixels` : "an area that is not known"],
      layer.exact === false ? ["Decided by", atlas.DECIDED] : null,
      ["Step between units", layer.field_stride ? `${area(layer.field_stride)} pixels` : "unknown"],
      layer.kernel ? ["Kernel", `${area(layer.kernel)}${layer.stride ? `, stride ${area(layer.stride)}` : ""}`] : null,
      ["Size of the map", area(layer.size)],
    ].filter(Boolean);
  }

  const terms = (pairs) =>
    el(
      "dl",
      { class: "facts" },
      pairs.map(([term, text]) => el("div", {}, el("dt", {}, term), el("dd", {}, text))),
    );

  async function neighbours(place, query) {
    const { source, L, item } = place;
    const { layers } = source.index;
    const below = layers[L].below.map((l) => layers[l].name).join(", ");
    const signed = (value) => (value > 0 ? "+" : "") + number(value);
    const parts = await Promise.all([
      links(
        source,
        "It reads, by weight",
        `The maps of ${below} with the largest weights in its filter; negative weights inhibit it.`,
        item.weight,
        signed,
        query,
      ),
      links(
        source,
        "It reads, by signal",
        "Which maps below carry the signal of its projections.",
        item.signal,
        percent,
        query,
      ),
      links(
        source,
        "Read by",
        "The maps of the layer above that give it the largest weights.",
        item.readers,
        signed,
        query,
      ),
    ]);
    return parts.some(Boolean)
      ? el("section", {}, el("h2", {}, "Its place in the network"), el("div", { class: "neighbours" }, parts))
      : null;
  }

  atlas.pages.map = async (container, { parts: [name, text], query }) => {
    const { source, index } = atlas;
    const place = { source, ...(await find(source, name, text)) };
    const { L, row, map, item } = place;
    const layer = index.layers[L];
    const known = viewsOf(index);
    let view = known.includes(query.view) ? query.view : known[0];
    const keep = () => ({ view: view === known[0] ? null : view });
    const beside = (other) => (other < 0 || other >= layer.rows ? null : atlas.numberOf(source, L, other));
    const [before, after] = await Promise.all([beside(row - 1), beside(row + 1)]);

    const step = (other, sign, words) =>
      other === null
        ? el("span", { class: "button off", "aria-hidden": "true" }, sign)
        : el(
            "a",
            {
              class: `button ${words.toLowerCase()}`,
              href: address.map(name, other, keep()),
              title: `${words}: map ${other}`,
              "aria-label": `${words}: map ${other}`,
            },
            sign,
          );
    const head = el(
      "div",
      { class: "heading" },
      el("h1", { tabindex: -1 }, el("span", {}, name), " ", el("span", { class: "thin" }, `map ${map}`)),
      el(
        "span",
        { class: "buttons" },
        step(before, "←", "Previous"),
        step(after, "→", "Next"),
        el("button", { type: "button", onclick: () => atlas.random() }, "Random"),
        el("a", { class: "button", href: address.units([[name, map]]) }, "Compare"),
        el("button", { type: "button", class: "save", onclick: () => atlas.savePicture(place, view) }, "Save PNG"),
        el("button", { type: "button", class: "save", onclick: () => atlas.saveNumbers(place) }, "Save JSON"),
      ),
    );
    const dead = item.value.length === 0;
    const buttons = known.map((key, i) =>
      el(
        "button",
        {
          type: "button",
          "data-view": key,
          title: `key ${i + 1}: ${VIEWS[key][1]}`,
          onclick: () => {
            view = key; // at once: the next key may come before the address is read
            if (!dead) draw();
            atlas.navigate(address.map(name, map, { view: key === known[0] ? null : key }));
          },
        },
        VIEWS[key][0],
      ),
    );
    const tiles = el("div", { class: "tiles" });
    const said = el("p", { class: "meaning", role: "status" });
    const draw = () => {
      for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.view === view));
      tiles.replaceChildren(nine(place, view));
      said.textContent = scale(place, view);
      for (const link of head.querySelectorAll("a.previous, a.next"))
        link.hash = address.map(name, /\d+$/.exec(link.title)[0], keep());
    };
    const pictures = dead
      ? el(
          "p",
          { class: "notice" },
          `This map is dead: it is above zero on none of the ${count(index.images, "image")}, so there is nothing to show.`,
        )
      : [
          buttons.length > 1
            ? el("div", { class: "switch", role: "group", "aria-label": "What each tile shows" }, buttons)
            : null,
          said,
          tiles,
          item.value.length < index.k
            ? el("p", { class: "meaning" }, `It responds to only ${count(item.value.length, "image")}.`)
            : null,
        ];
    if (!dead) draw();
    atlas.add(
      container,
      head,
      el(
        "div",
        { class: "columns" },
        el("div", { class: "main" }, el("h2", { class: "unseen" }, "Its strongest units"), pictures, examples(place)),
        el(
          "aside",
          { "aria-label": "Numbers of this map" },
          el("h2", {}, "How strong, and how often"),
          atlas.histogram(source, item),
          el(
            "p",
            { class: "meaning" },
            `Its maximum in each of the ${count(index.images, "image")}${layer.clipped ? ", before the clip" : ""}. Triangles: the ${item.value.length || "strongest"} shown.`,
          ),
          terms(facts(place)),
          classes(place),
        ),
      ),
      await neighbours(place, keep()),
      steps(place),
    );
    const widths = [window.matchMedia("(max-width: 459px)"), window.matchMedia("(max-width: 759px)")];
    if (!dead) for (const width of widths) width.addEventListener("change", draw);
    return {
      title: `${name} map ${map}`,
      where: [
        [name, address.layer(name)],
        [`map ${map}`, address.map(name, map)],
      ],
      layer: L,
      map,
      before: () => before !== null && address.map(name, before, keep()),
      after: () => after !== null && address.map(name, after, keep()),
      view: () => keep().view,
      views: known,
      update({ query: next }) {
        const wanted = known.includes(next.view) ? next.view : known[0];
        if (wanted === view) return;
        view = wanted;
        if (!dead) draw();
      },
      leave: () => widths.forEach((width) => width.removeEventListener("change", draw)),
    };
  };

  Object.assign(atlas, { findMap: find, nine, mapFacts: facts, terms });
})();
