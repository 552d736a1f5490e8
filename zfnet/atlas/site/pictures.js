/*
 * Pictures: tiles out of sprites, boxes on images, histograms.
 *
 * A sprite holds the tiles of many maps; a tile is an element with the sprite behind it, moved and enlarged. Its size is
 * known beforehand, so nothing jumps when the sprite arrives. Small tiles are enlarged a whole number of times, with
 * sharp pixels. Grey (#808080) is zero in a projection, in light and in dark.
 */
"use strict";

(() => {
  const { el, svg, number } = atlas;
  const asked = new Set();
  const SMALL = 40; // tiles below this side show their pixels

  /** Sheets are read when a tile of them is on the screen: those of linked maps are many, and below the first screen. */
  const late = new WeakMap();
  const near = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      near.unobserve(target);
      late.get(target)?.();
      late.delete(target);
    }
  });

  /** Say on the page when a picture cannot be read: an element with a missing background only stays empty. */
  function watch(url, file) {
    if (asked.has(url)) return;
    asked.add(url);
    const picture = new Image();
    picture.onerror = () => {
      asked.delete(url);
      atlas.tell(`The picture ${file} could not be shown: it is missing, or this browser does not know its format.`);
    };
    picture.src = url;
  }

  /**
   * How much a tile is enlarged so that its longer side comes near to `target` pixels.
   * @param {number[]} size rows and columns of the stored tile
   */
  function scaleTo(size, target) {
    const side = Math.max(...size);
    const fine = window.devicePixelRatio >= 2 ? 2 : 1; // whole numbers of the screen's own pixels
    return side < SMALL ? Math.max(1, Math.floor((target * fine) / side) / fine) : target / side;
  }

  /** What the tiles of a layer show and how large: said once beside them. */
  /** The rows and columns that a map's units see: in a layer of joined branches, those of its own branch. */
  function fieldOf(layer, item) {
    if (!layer.fields || layer.whole || !item.box.length) return layer.whole ? layer.shown : layer.field;
    const [top, left, bottom, right] = item.box[0];
    return [bottom - top, right - left];
  }

  function scaleText(layer, scale, item) {
    const times = (layer.tile[0] * scale) / layer.shown[0];
    const drawn =
      times > 1.005
        ? `enlarged ${number(Number(times.toPrecision(3)))} times`
        : times < 0.995
          ? `reduced to ${Math.round(100 * times)} %`
          : "in their size";
    const what = layer.whole ? "whole images, with the box of what the unit sees" : "what the unit sees";
    const seen = layer.whole ? layer.shown : (fieldOf(layer, item) ?? layer.shown);
    const rest = seen[0] < layer.shown[0] || seen[1] < layer.shown[1] ? "; the rest of a tile is white" : "";
    return `Each tile: ${what}, ${atlas.area(seen)} pixels, ${drawn}${rest}`;
  }

  /**
   * Where a stored tile lies: the sheet's file and width, the tile's size, its left and upper edge; all in stored pixels.
   * A map's row in its sheet: k crops, k projections, 4 examples.
   */
  function locate(source, L, row, kind, place) {
    const { k, pixels, encoding, layers } = source.index;
    const { per, across, tile, mask, example, overview } = layers[L];
    const none = pixels === "none";
    const sheet = (of) => [Math.floor(row / per[of]), row % per[of]];
    if (kind === "overview") {
      const [n, r] = sheet("overview");
      const [tall, wide] = overview;
      const pair = none ? 1 : 2;
      const x = ((r % across.overview) * pair + (none ? 0 : place)) * wide;
      return [
        `overview-${n}.${encoding}`,
        across.overview * pair * wide,
        overview,
        x,
        Math.floor(r / across.overview) * tall,
      ];
    }
    if (kind === "mask") {
      const [n, r] = sheet("masks");
      const [tall, wide] = mask;
      const x = ((r % across.masks) * k + place) * wide;
      return [`masks-${n}.png`, across.masks * k * wide, mask, x, Math.floor(r / across.masks) * tall];
    }
    const [n, r] = sheet("tiles");
    const [tall, wide] = tile;
    const width = none ? k * wide : 2 * k * wide + 4 * (example?.[1] ?? 0);
    const y = r * tall;
    if (kind === "example") return [`${n}.${encoding}`, width, example, 2 * k * wide + place * example[1], y];
    return [`${n}.${encoding}`, width, tile, (kind === "projection" && !none ? k + place : place) * wide, y];
  }

  /**
   * A tile.
   * @param {number} L the layer's number
   * @param {number} row the map's place in the layer's lists
   * @param {"crop"|"projection"|"masked"|"overview"|"example"} kind
   * @param {number} place 0 for the strongest; of "overview": 0 the crop, 1 the projection; of "example": 0 to 3
   * @param {{source?: Source, target?: number, scale?: number, label?: string, box?: number[]}} options `target`: its longer side
   *     in pixels of the screen; `label`: what a screen reader says (without one it is passed over); `box`: drawn on
   *     tiles that are whole images, in pixels of the network's image; `lazy`: its sheet is read when it comes into view
   * @returns {HTMLElement}
   */
  function tile(L, row, kind, place, { source = atlas.source, target = 80, scale, label, box, lazy = false } = {}) {
    const kinds = kind === "masked" ? ["mask", "crop"] : [kind];
    const images = [];
    const positions = [];
    const sizes = [];
    const files = [];
    let size;
    let times = scale;
    for (const one of kinds) {
      const [name, width, stored, x, y] = locate(source, L, row, one, place);
      const file = `tiles/${L}/${name}`;
      const url = new URL(source.path(file), document.baseURI).href;
      files.push([url, source.path(file)]);
      times ??= scaleTo(one === "mask" ? source.index.layers[L].tile : stored, target);
      size ??= (one === "mask" ? source.index.layers[L].tile : stored).map((side) => side * times);
      const [down, along] = [size[0] / stored[0], size[1] / stored[1]]; // a mask is stored smaller than its crop
      images.push(`url("${url}")`);
      positions.push(`${-x * along}px ${-y * down}px`);
      sizes.push(`${width * along}px auto`);
    }
    const sharp = times > 1 && Math.max(...size) / times < SMALL;
    const picture = el("span", {
      class: `tile ${kind}${sharp ? " sharp" : ""}`,
      role: label ? "img" : null,
      "aria-label": label,
      "aria-hidden": label ? null : "true",
      style: {
        width: `${size[1]}px`,
        height: `${size[0]}px`,
        backgroundPosition: positions.join(", "),
        backgroundSize: sizes.join(", "),
      },
    });
    const paint = () => {
      for (const file of files) watch(...file);
      picture.style.backgroundImage = images.join(", ");
    };
    if (lazy) {
      late.set(picture, paint);
      near.observe(picture);
    } else {
      paint();
    }
    if (box && source.index.layers[L].whole) picture.append(frame(source, box));
    return picture;
  }

  /** A box as a part of the image in which it lies; what leaves the image is cut off. */
  function frame(source, box, attributes = {}) {
    const [height, width] = source.index.image_size;
    const within = (value, side) => (100 * Math.min(Math.max(value, 0), side)) / side;
    const [top, left, bottom, right] = [
      within(box[0], height),
      within(box[1], width),
      within(box[2], height),
      within(box[3], width),
    ];
    const style = { top: `${top}%`, left: `${left}%`, width: `${right - left}%`, height: `${bottom - top}%` };
    return el("span", { class: "box", "aria-hidden": "true", style, ...attributes });
  }

  /** A whole image, or grey of its form where the atlas has no images; with boxes on it. */
  function whole(id, target, { source = atlas.source, label, boxes = [], size } = {}) {
    const [height, width] = size ?? source.index.image_size;
    const times = target / Math.max(height, width);
    const measures = { width: Math.round(width * times), height: Math.round(height * times) };
    const style = { width: `${measures.width}px`, aspectRatio: `${width} / ${height}` };
    const none = source.index.pixels === "none";
    const file = source.path(`images/${id}.${source.index.encoding}`);
    const picture = none
      ? el("span", { class: "nothing", role: "img", "aria-label": `${label}; this atlas holds no photographs` })
      : el("img", {
          src: file,
          alt: label,
          ...measures,
          decoding: "async",
          onerror: () => atlas.tell(`The picture ${file} could not be shown.`),
        });
    return el(
      "span",
      { class: "whole", style },
      picture,
      boxes.map((box) => box && frame(source, box)),
    );
  }

  // --- the histogram ---

  /** The bins to draw, in order, null for a break: those about zero are left out where they are empty. */
  function axis(edges, bins, values) {
    const full = new Set(bins.map(([bin]) => bin));
    for (const value of values) full.add(binOf(edges, value));
    const zero = edges.findIndex((edge, i) => edge !== null && edge < 0 && edges[i + 1] > 0);
    const sides = [
      [...full].filter((bin) => bin < zero),
      full.has(zero) ? [zero] : [],
      [...full].filter((bin) => bin > zero),
    ];
    const runs = sides
      .filter((side) => side.length)
      .map((side) => {
        const [first, last] = [Math.min(...side), Math.max(...side)];
        return Array.from({ length: last - first + 1 }, (_, i) => first + i);
      });
    return runs.flatMap((run, i) => (i && runs[i - 1].at(-1) + 1 < run[0] ? [null, ...run] : run));
  }

  function binOf(edges, value) {
    let bin = 0;
    while (bin < edges.length - 2 && edges[bin + 1] !== null && value > edges[bin + 1]) bin++;
    return bin;
  }

  /** Where in its bin a value lies, from 0 to 1: by its logarithm, as the edges do. */
  function within(edges, bin, value) {
    const [low, high] = [edges[bin], edges[bin + 1]];
    if (low === null || high === null || low * high <= 0) return 0.5;
    return (Math.log(Math.abs(value)) - Math.log(Math.abs(low))) / (Math.log(Math.abs(high)) - Math.log(Math.abs(low)));
  }

  /**
   * How many images have which maximum of a map, with its strongest marked.
   * @param {Source} source
   * @param {object} item the map
   * @param {{width?: number, height?: number, mark?: number}} options `mark`: one value more (that of your own image, say)
   */
  function histogram(source, item, { width = 320, height = 150, mark } = {}) {
    const edges = source.index.bins;
    const winners = item.unclipped ?? item.value;
    const shown = axis(edges, item.bins, mark === undefined ? winners : [...winners, mark]);
    const top = Math.max(1, ...item.bins.map(([, many]) => many));
    const [rule, name] =
      top <= 12
        ? [(n) => n, ""]
        : top <= 20000
          ? [Math.sqrt, ", square-root scale"]
          : [(n) => Math.log(1 + n), ", logarithmic scale"];
    const [left, right, above, below] = [36, 8, 26, 36];
    const [inner, tall] = [width - left - right, height - above - below];
    const step = inner / Math.max(shown.length, 1);
    const base = above + tall;
    const place = (value) => {
      const bin = binOf(edges, value);
      return left + step * (shown.indexOf(bin) + within(edges, bin, value));
    };
    const drawing = svg("svg", {
      class: "histogram",
      viewBox: `0 0 ${width} ${height}`,
      width,
      height,
      role: "img",
      "aria-label":
        `Histogram: on how many images the map's maximum has which value. ${item.bins.length} bins have images; ` +
        `the strongest value is ${number(winners[0])}, the largest count ${number(top)}.`,
    });
    for (const many of [0, ...ticks(top)]) {
      const y = base - (tall * rule(many)) / rule(top);
      drawing.append(
        svg("line", { class: "grid", x1: left, x2: width - right, y1: y, y2: y }),
        svg("text", { class: "y", x: left - 5, y: y + 3.5 }, number(many)),
      );
    }
    const counts = new Map(item.bins);
    shown.forEach((bin, i) => {
      const x = left + step * i;
      if (bin === null) drawing.append(svg("text", { class: "gap", x: x + step / 2, y: base + 4 }, "⋯"));
      else if (counts.get(bin)) {
        const size = (tall * rule(counts.get(bin))) / rule(top);
        const range = `${bound(edges[bin], "below")} to ${bound(edges[bin + 1], "above")}: ${atlas.count(counts.get(bin), "image")}`;
        drawing.append(
          svg(
            "rect",
            { class: "bar", x: x + 0.4, y: base - size, width: Math.max(step - 0.8, 0.6), height: size },
            svg("title", {}, range),
          ),
        );
      }
    });
    for (const [x, text] of labels(edges, shown, left, step)) {
      drawing.append(
        svg("line", { class: "tick", x1: x, x2: x, y1: base, y2: base + 4 }),
        svg("text", { class: "x", x, y: base + 15 }, text),
      );
    }
    for (const value of winners) {
      const x = place(value);
      drawing.append(
        svg(
          "path",
          { class: "winner", d: `M${x} ${base - 1}l-3.5 -7h7z` },
          svg("title", {}, `one of the strongest: ${number(value)}`),
        ),
      );
    }
    if (mark !== undefined)
      drawing.append(svg("line", { class: "mark", x1: place(mark), x2: place(mark), y1: above, y2: base }));
    drawing.append(
      svg("text", { class: "x name", x: left + inner / 2, y: height - 6 }, "maximum in an image (logarithmic)"),
      svg("text", { class: "name", x: 0, y: 11 }, `images${name}`),
    );
    return drawing;
  }

  const bound = (edge, word) => (edge === null ? `anything ${word}` : number(edge));

  /** Round counts below the largest. */
  function ticks(top) {
    if (top <= 4) return Array.from({ length: top }, (_, i) => i + 1);
    const found = [];
    for (let ten = 1; ten <= top; ten *= 10) if (ten * 100 > top) found.push(...[1, 3].map((n) => n * ten));
    const fit = found.filter((n) => n <= top);
    return fit.filter((n, i) => i >= fit.length - 4 && (n > top / 40 || top <= 12));
  }

  /** Labels below the axis that do not touch each other. */
  function labels(edges, shown, left, step) {
    const found = [];
    let free = -Infinity;
    shown.forEach((bin, i) => {
      if (bin === null) return;
      const [low, high] = [edges[bin], edges[bin + 1]];
      const zero = low !== null && high !== null && low < 0 && high > 0;
      const x = left + step * (zero ? i + 0.5 : i);
      const power = low !== null && Math.abs(Math.log2(Math.abs(low)) % 1) < 1e-9;
      if ((zero || power) && x >= free) {
        found.push([x, zero ? "0" : number(Number(low.toPrecision(2)))]);
        free = x + 38;
      }
    });
    return found;
  }

  const DECIDED = "more of the image: gates and norms, which the way back holds fixed";
  Object.assign(atlas, { DECIDED, locate, tile, frame, whole, scaleTo, scaleText, fieldOf, histogram });
})();
