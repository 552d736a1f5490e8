/*
 * A map's figure as a PNG, its numbers as JSON; both say how to cite the atlas.
 *
 * The figure is drawn on a canvas. Browsers do not give back a canvas with pictures on it to a page that was opened as a
 * file: the page then says what to do.
 */
"use strict";

(() => {
  const { el, number } = atlas;

  /** Have the browser save something under a name. */
  function download(blob, name) {
    const link = el("a", { href: URL.createObjectURL(blob), download: name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }

  const fileName = (layer, map, ending) => `${layer.name}-${map}`.replace(/[^\w.-]+/g, "_") + ending;

  /** All that the atlas knows of a map, with names instead of numbers of classes and files. */
  async function numbers({ source, L, item }) {
    const { index } = source;
    const layer = index.layers[L];
    const named = await source.names();
    const unit = (image, label, rest) => ({
      image,
      file: named(image)?.file ?? null,
      class: source.className(label),
      ...rest,
    });
    const maps = (list) => (list ?? []).map(([l, map, value]) => ({ layer: index.layers[l].name, map, value }));
    return {
      atlas: index.title,
      cite: index.cite,
      model: index.model,
      dataset: index.dataset,
      images: index.images,
      rules: index.rules,
      provenance: index.provenance,
      layer: layer.name,
      map: item.map,
      field: layer.field,
      field_stride: layer.field_stride,
      fires: item.fires,
      mean: item.mean,
      selectivity: item.selectivity,
      strongest: item.value.map((value, i) =>
        unit(item.image[i], item.label[i], {
          value,
          ...(item.unclipped ? { before_the_clip: item.unclipped[i] } : {}),
          row: item.row[i],
          column: item.column[i],
          box: item.box[i],
          focus: item.focus[i],
          mask_area: item.area[i],
        }),
      ),
      examples: item.examples.map(({ image, label, ...rest }) => unit(image, label, rest)),
      histogram: item.bins.map(([bin, many]) => ({ above: index.bins[bin], up_to: index.bins[bin + 1], images: many })),
      classes: item.classes.map(([label, mean, share]) => ({
        class: source.className(label),
        mean,
        share_of_the_strongest: share,
      })),
      reads_by_weight: maps(item.weight),
      reads_by_signal: maps(item.signal),
      read_by: maps(item.readers),
      steps: layer.steps.map(([name, operation], i) => ({ name, operation, not_zero: item.steps[i] ?? null })),
    };
  }

  atlas.saveNumbers = async (place) => {
    const text = JSON.stringify(await numbers(place), null, 1) + "\n";
    download(
      new Blob([text], { type: "application/json" }),
      fileName(place.source.index.layers[place.L], place.map, ".json"),
    );
  };

  function read(url) {
    return new Promise((resolve, reject) => {
      const picture = new Image();
      picture.onload = () => resolve(picture);
      picture.onerror = () => reject(new atlas.Sorry(`The picture ${url} could not be read.`));
      picture.src = url;
    });
  }

  /** Break a text into lines that fit. */
  function wrap(context, text, width) {
    const lines = [""];
    for (const word of text.split(/\s+/)) {
      const longer = `${lines.at(-1)} ${word}`.trim();
      if (lines.at(-1) && context.measureText(longer).width > width) lines.push(word);
      else lines[lines.length - 1] = longer;
    }
    return lines;
  }

  /** The nine as in the paper: crops on the left, projections on the right, or one of them; below, what they are. */
  async function figure({ source, L, row, item }, view) {
    const { index } = source;
    const layer = index.layers[L];
    const kinds = view === "pair" ? ["crop", "projection"] : [view];
    const times = 2 * atlas.scaleTo(layer.tile, 112);
    const [tall, wide] = layer.tile.map((side) => side * times);
    const [gap, margin, head] = [6, 40, 84];
    const across = Math.min(3, item.value.length);
    const block = across * (wide + gap) - gap;
    const canvas = el("canvas", {});
    const context = canvas.getContext("2d");
    const width = Math.max(2 * margin + kinds.length * block + (kinds.length - 1) * 30, 640);
    const text = [
      `${view === "image" ? "Whole images." : `${atlas.scaleText(layer, times, item)}.`} Grey is zero; each projection has its own scale. Values: ${item.value.map(number).join(", ")}.`,
      `${index.model}; ${index.dataset}, ${number(index.images)} images.`,
      index.cite ?? "",
    ];
    context.font = "20px system-ui, sans-serif";
    const lines = text.filter(Boolean).flatMap((part) => wrap(context, part, width - 2 * margin));
    const rows = Math.ceil(item.value.length / 3);
    const bottom = head + rows * (tall + gap);
    canvas.width = width;
    canvas.height = bottom + 28 * lines.length + 40;
    context.fillStyle = "#ffffff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.fillStyle = "#1d2227";
    context.font = "600 32px system-ui, sans-serif";
    context.fillText(`${layer.name}, map ${item.map}`, margin, 54, width - 2 * margin);
    context.font = "20px system-ui, sans-serif";
    lines.forEach((line, i) => context.fillText(line, margin, bottom + 34 + 28 * i, width - 2 * margin));
    for (const [b, kind] of kinds.entries()) {
      for (const rank of item.value.keys()) {
        const x = margin + b * (block + 30) + (rank % 3) * (wide + gap);
        const y = head + Math.floor(rank / 3) * (tall + gap);
        for (const one of kind === "masked" ? ["crop", "mask"] : [kind]) {
          const [file, , size, left, top] =
            kind === "image"
              ? [`images/${item.image[rank]}.${index.encoding}`]
              : atlas.locate(source, L, row, one, rank);
          const picture = await read(source.path(kind === "image" ? file : `tiles/${L}/${file}`));
          context.imageSmoothingEnabled = Math.max(...layer.tile) >= 40;
          if (kind === "image") contain(context, picture, x, y, wide, tall);
          else context.drawImage(picture, left, top, size[1], size[0], x, y, wide, tall);
        }
        if (kind === "image" || layer.whole) outline(context, index.image_size, item.box[rank], x, y, wide, tall);
      }
    }
    return canvas;
  }

  /** A whole image in the room of a tile. */
  function contain(context, picture, x, y, wide, tall) {
    const times = Math.min(wide / picture.naturalWidth, tall / picture.naturalHeight);
    context.drawImage(picture, x, y, picture.naturalWidth * times, picture.naturalHeight * times);
  }

  function outline(context, [height, width], [top, left, bottom, right], x, y, wide, tall) {
    const times = Math.min(wide / width, tall / height);
    const [first, last] = [
      [Math.max(left, 0), Math.max(top, 0)],
      [Math.min(right, width), Math.min(bottom, height)],
    ];
    for (const [colour, line] of [
      ["#000000", 5],
      ["#ffd400", 3],
    ]) {
      context.strokeStyle = colour;
      context.lineWidth = line;
      context.strokeRect(
        x + first[0] * times,
        y + first[1] * times,
        (last[0] - first[0]) * times,
        (last[1] - first[1]) * times,
      );
    }
  }

  atlas.savePicture = async (place, view) => {
    if (!place.item.value.length) return atlas.tell("This map is dead: there is no picture to save.");
    try {
      const canvas = await figure(place, view);
      const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
      download(blob, fileName(place.source.index.layers[place.L], place.map, `-${view}.png`));
    } catch (error) {
      if (error.name !== "SecurityError") return atlas.tell(error.message);
      atlas.tell(
        "Browsers do not let a page that was opened as a file save pictures: run “python -m http.server” in the atlas' folder, open http://localhost:8000 and save it there. Its numbers can be saved here.",
      );
    }
  };
})();
