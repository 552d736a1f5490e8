/*
 * The first page: the network as the paper draws it, its layers, how to read a tile, and where all of this comes from.
 *
 * A block's side grows with the square root of the map's size, its depth with the logarithm of the number of maps.
 */
"use strict";

(() => {
  const { el, svg, area, count, number, address } = atlas;
  const PREVIEWS = 12; // maps shown of each layer
  const MOST = 28; // blocks drawn before those without a layer are left out

  const size = ([maps, height = 1, width = 1]) =>
    height * width > 1 ? `${number(maps)} @ ${height}×${width}` : number(maps);

  /** Steps that are drawn as one block: a convolution or pooling begins a new one, and so does a change of size. */
  function blocks(network) {
    const found = [];
    for (const step of network) {
      const last = found.at(-1);
      const same =
        last &&
        !step.kernel &&
        String(last.output) === String(step.output) &&
        !(last.layer !== null && step.layer !== null);
      if (same) last.steps.push(step);
      else found.push({ output: step.output, steps: [step], layer: null });
      if (step.layer !== null && step.layer !== undefined) found.at(-1).layer = step.layer;
    }
    if (found.length <= MOST) return found;
    const kept = [];
    for (const [i, block] of found.entries()) {
      if (block.layer !== null || i === found.length - 1) kept.push(block);
      else if (kept.at(-1)?.left) kept.at(-1).left += block.steps.length;
      else kept.push({ left: block.steps.length });
    }
    return kept;
  }

  /** A box in parallel projection, as wide as its depth in maps and as high as its map. */
  function drawing({ output: [maps, height = 1, width = 1] }, largest, tall) {
    const side = Math.max(5, Math.sqrt(Math.sqrt(height * width) / largest) * tall);
    const depth = 5 + 5.5 * Math.log2(Math.max(maps, 1));
    const slant = side * 0.28;
    const [w, h] = [depth + slant + 2, tall * 1.28 + 2];
    const y = 1 + tall * 0.28 + (tall - side) / 2;
    const face = (points, name) =>
      svg("path", { class: name, d: `M${points.map((point) => point.map((v) => v.toFixed(1)).join(" ")).join("L")}Z` });
    return svg(
      "svg",
      { width: w, height: h, viewBox: `0 0 ${w} ${h}`, "aria-hidden": "true" },
      face(
        [
          [1, y],
          [1 + slant, y - slant],
          [1 + slant + depth, y - slant],
          [1 + depth, y],
        ],
        "face top",
      ),
      face(
        [
          [1 + depth, y],
          [1 + depth + slant, y - slant],
          [1 + depth + slant, y - slant + side],
          [1 + depth, y + side],
        ],
        "face right",
      ),
      face(
        [
          [1, y],
          [1 + depth, y],
          [1 + depth, y + side],
          [1, y + side],
        ],
        "face front",
      ),
    );
  }

  const WORDS = {
    conv2d: "conv",
    switchmaxpool2d: "max pool",
    maxpool2d: "max pool",
    max_pool2d: "max pool",
    avgpool2d: "average pool",
    avg_pool2d: "average pool",
    adaptiveavgpool2d: "average pool",
    adaptive_avg_pool2d: "average pool",
    relu: "ReLU",
    relu_: "ReLU",
    batchnorm2d: "batch norm",
    contrastnorm: "contrast norm",
    localresponsenorm: "contrast norm",
    add: "sum",
    iadd: "sum",
    cat: "joined",
    linear: "linear",
    flatten: "flatten",
    dropout: "",
    identity: "",
  }; // what operations are called; others by their own name

  function describe({ operation, kernel, stride }) {
    const window = kernel ? ` ${kernel[0]}×${kernel[1]}` : "";
    const word = WORDS[operation.toLowerCase()] ?? operation;
    return word + window + (stride && Math.max(...stride) > 1 ? ` /${stride[0]}` : "");
  }

  function network(index) {
    const shown = blocks(index.network);
    const [height, width] = index.image_size;
    const image = { output: [index.channels ?? 3, height, width], steps: [], image: true };
    const largest = Math.sqrt(height * width);
    const tall = shown.length < 10 ? 130 : 92;
    const items = [image, ...shown].map((block) => {
      if (block.left)
        return el(
          "li",
          { class: "left-out" },
          el("span", { title: `${block.left} steps are not drawn` }, `… ${count(block.left, "step")}`),
        );
      const layer = block.layer === null || block.layer === undefined ? null : index.layers[block.layer];
      const picture = drawing(block, largest, tall);
      const basis = { flexBasis: `${Math.max(Number(picture.getAttribute("width")) + 12, 84)}px` };
      const text = [
        picture,
        el("span", { class: "name" }, block.image ? "image" : layer ? layer.name : block.steps[0].name),
        el("span", { class: "size" }, size(block.output)),
        el("span", { class: "how" }, block.image ? "pixels" : block.steps.map(describe).filter(Boolean).join(", ")),
      ];
      const title = block.steps.map((step) => `${step.name}: ${describe(step) || step.operation}`).join("\n");
      return el(
        "li",
        { style: basis },
        layer ? el("a", { href: address.layer(layer.name), title }, text) : el("span", { class: "step", title }, text),
      );
    });
    return el(
      "div",
      { class: "network", tabindex: 0, role: "group", "aria-label": "The network, from the image to its output" },
      el("ol", {}, items),
    );
  }

  /** A few maps of a layer: evenly spread over those of its first sprite that are alive. */
  async function previews(L, list) {
    const layer = atlas.index.layers[L];
    const within = Math.min(layer.rows, layer.per.overview);
    const many = atlas.index.layers.reduce((sum, { rows }) => sum + rows, 0);
    const columns = layer.rows !== layer.maps || many <= 20000 ? await atlas.load(`columns/${L}`) : null;
    const alive = Array.from({ length: within }, (_, row) => row).filter((row) => !columns?.dead[row]);
    const chosen =
      alive.length <= PREVIEWS
        ? alive
        : Array.from({ length: PREVIEWS }, (_, i) => alive[Math.floor((i * alive.length) / PREVIEWS)]);
    const none = atlas.index.pixels === "none";
    list.replaceChildren(
      ...chosen.map((row) => {
        const map = columns ? columns.map[row] : row;
        const pair = (none ? [1] : [0, 1]).map((place) => atlas.tile(L, row, "overview", place, { target: 48 }));
        return el(
          "li",
          {},
          el(
            "a",
            {
              class: "pair",
              href: address.map(layer.name, map),
              "aria-label": `Map ${map} of ${layer.name}`,
              title: `map ${map}`,
            },
            pair,
          ),
        );
      }),
    );
  }

  function facts(layer) {
    const dead = layer.dead ? `${number(layer.dead)} dead` : "none dead";
    const field = layer.field ? `sees ${area(layer.field)} pixels` : "sees an area that differs from unit to unit";
    const rows =
      layer.rows === layer.maps ? count(layer.maps, "map") : `${number(layer.rows)} of its ${count(layer.maps, "map")}`;
    return [
      rows,
      dead,
      field + (layer.whole && layer.field ? ", beyond the image" : ""),
      layer.field_stride ? `every ${area(layer.field_stride)}` : null,
    ]
      .filter(Boolean)
      .join(" · ");
  }

  function layers(index) {
    const watcher = new IntersectionObserver(
      (entries) => {
        for (const { target, isIntersecting } of entries) {
          if (!isIntersecting) continue;
          watcher.unobserve(target);
          previews(Number(target.dataset.layer), target).catch((error) =>
            target.replaceChildren(el("li", { class: "sorry" }, error.message)),
          );
        }
      },
      { rootMargin: "300px" },
    );
    const list = el(
      "ol",
      { class: "layers" },
      index.layers.map((layer, L) => {
        const height = Math.max(layer.overview[0] * atlas.scaleTo(layer.overview, 48), 24);
        const tiles = el("ul", {
          class: "previews",
          "data-layer": L,
          style: { height: `${height}px` },
          "aria-label": `Some maps of ${layer.name}`,
        });
        watcher.observe(tiles);
        const text = el("p", { class: "facts" }, facts(layer));
        return el(
          "li",
          {},
          el("h3", {}, el("a", { href: address.layer(layer.name) }, layer.name), " ", el("small", {}, layer.operation)),
          text,
          tiles,
        );
      }),
    );
    return [list, () => watcher.disconnect()];
  }

  function reading(index) {
    const none = index.pixels === "none";
    const terms = [
      ["Unit", "One number that the network computes at one place of one image."],
      [
        "Feature map",
        "All units of a layer that share one filter: they look for the same thing, each at its own place.",
      ],
      none
        ? null
        : [
            "Crop",
            "The part of the photograph that a unit sees, its receptive field. Each map shows the crops for which it is strongest, the strongest first.",
          ],
      [
        "Projection",
        `The part of its crop that a unit responded to: its activation, projected back to pixels (${index.rules}). Grey is zero. Each projection has its own scale of contrast.`,
      ],
      ["Dead map", "A map that is above zero on none of the images."],
    ];
    return el(
      "dl",
      { class: "terms" },
      terms.filter(Boolean).map(([term, text]) => el("div", {}, el("dt", {}, term), el("dd", {}, text))),
    );
  }

  /** One pair, large: what all the pictures of the atlas are. */
  async function example(index, figure) {
    const L = Math.floor(index.layers.length / 2);
    const { name, rows, maps, tile } = index.layers[L];
    const [height, width] = tile.map((side) => side * atlas.scaleTo(tile, 128));
    Object.assign(figure.style, { width: `${2 * width + 2}px`, minHeight: `${height + 48}px` });
    const many = index.layers.reduce((sum, layer) => sum + layer.rows, 0);
    const columns = rows !== maps || many <= 20000 ? await atlas.load(`columns/${L}`) : null;
    const row = Math.max(columns?.dead.indexOf(false) ?? 0, 0);
    const map = columns ? columns.map[row] : row;
    const item = await atlas.source.map(L, row);
    const kinds = index.pixels === "none" ? ["projection"] : ["crop", "projection"];
    const tiles = kinds.map((kind) =>
      atlas.tile(L, row, kind, 0, {
        target: 128,
        box: item.box[0],
        label: `${kind} of the strongest unit of map ${map} of ${name}`,
      }),
    );
    figure.replaceChildren(
      el("a", { class: "pair", href: address.map(name, map) }, tiles),
      el(
        "figcaption",
        {},
        index.pixels === "none" ? "A projection" : "A crop and its projection",
        `: map ${map} of ${name}.`,
      ),
    );
  }

  function provenance(index) {
    const rows = Object.entries(index.provenance ?? {}).map(([name, value]) =>
      el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, value === null ? "–" : String(value))),
    );
    return el(
      "div",
      { class: "wide", tabindex: 0, role: "group", "aria-label": "Provenance" },
      el("table", { class: "plain provenance" }, el("tbody", {}, rows)),
    );
  }

  atlas.pages.overview = (container) => {
    const { index } = atlas;
    const maps = index.layers.reduce((sum, layer) => sum + layer.rows, 0);
    const [list, leave] = layers(index);
    const figure = el("figure", {});
    example(index, figure).catch((error) => figure.replaceChildren(el("figcaption", {}, error.message)));
    const broken = index.broken_count
      ? el(
          "details",
          { class: "notice" },
          el("summary", {}, `${count(index.broken_count, "image")} could not be read`),
          el(
            "ul",
            {},
            index.broken.map((message) => el("li", {}, message)),
          ),
        )
      : null;
    atlas.add(
      container,
      el("h1", { tabindex: -1 }, index.title),
      el(
        "p",
        { class: "lede" },
        `${count(maps, "feature map")} in ${count(index.layers.length, "layer")} of ${index.model}: what makes each of them respond, among ${count(index.images, "image")} of ${index.dataset}.`,
      ),
      index.warnings.map((warning) => el("p", { class: "notice", role: "note" }, warning)),
      broken,
      index.licence ? el("p", { class: "licence", role: "note" }, index.licence) : null,
      el(
        "p",
        { class: "buttons" },
        el("button", { type: "button", class: "first", onclick: () => atlas.random() }, "A random map"),
        window.ZFNET_SERVED ? el("a", { class: "button", href: "#/own" }, "Your own image") : null,
      ),
      el("h2", {}, "The network"),
      network(index),
      el("h2", {}, "How to read it"),
      el("div", { class: "reading" }, figure, reading(index)),
      el("h2", {}, "The layers"),
      list,
      el("h2", {}, "How to cite it"),
      el("p", { class: "cite" }, index.cite),
      el("h2", {}, "Provenance"),
      provenance(index),
    );
    return { title: "", leave };
  };
})();
