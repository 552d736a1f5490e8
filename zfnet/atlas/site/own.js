/*
 * The page of your own image: what the network sees in it, and which maps it is unusual for.
 *
 * Only the served atlas has it: the browser sends the picture to this machine's server with every question, which keeps
 * nothing. The picture stays in this page until it is closed, so that the way back from a map leads to it again.
 */
"use strict";

(() => {
  const { el, svg, number, percent, count, address } = atlas;
  const served = window.ZFNET_SERVED ?? { bytes: 20 * 2 ** 20 };
  const FIRST = 16; // maps of a layer before the button that shows all
  let kept = null; // { file, name, answer } of the picture that was given last

  /** What the server answers to a picture; a sentence where it refuses. */
  async function ask(path, file, query = {}, signal = undefined) {
    const text = new URLSearchParams(query).toString();
    let reply;
    try {
      reply = await fetch(`${path}${text ? "?" : ""}${text}`, { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" }, signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new atlas.Sorry("The server does not answer. Is it still running?");
    }
    const answer = await reply.json().catch(() => ({ error: `the server answered ${reply.status}` }));
    if (!reply.ok) throw new atlas.Sorry(sentence(answer.error));
    return answer;
  }

  const sentence = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;

  /** The picture among what was dropped or pasted. */
  function pictureOf(transfer) {
    const files = [...(transfer?.files ?? [])];
    return files.find((file) => file.type.startsWith("image/")) ?? files[0] ?? null;
  }

  /** How unusual a map's activation is, in words. */
  const words = (found) => (found.fires ? found.said : found.dead ? found.said : "not above zero here");

  // --- the webcam ---

  function webcam(take, say) {
    const place = el("div", { class: "webcam", hidden: true });
    let stream = null;
    const close = () => {
      for (const track of stream?.getTracks() ?? []) track.stop();
      stream = null;
      place.hidden = true;
      place.replaceChildren();
    };
    async function open() {
      if (stream) return close();
      if (!navigator.mediaDevices?.getUserMedia) return say("No webcam: the browser has none, or does not trust this page's address.");
      try {
        stream = await navigator.mediaDevices.getUserMedia({ video: true });
      } catch (error) {
        return say(error.name === "NotAllowedError" ? "The webcam was not allowed for this page." : "No usable webcam was found.");
      }
      const video = el("video", { autoplay: true, playsinline: true, "aria-label": "What the webcam sees" });
      video.muted = true;
      video.srcObject = stream;
      const frame = () => {
        const canvas = el("canvas", { width: video.videoWidth, height: video.videoHeight });
        canvas.getContext("2d").drawImage(video, 0, 0);
        canvas.toBlob((blob) => {
          close();
          if (blob) take(blob, "the webcam's frame");
        }, "image/png");
      };
      const button = el("button", { type: "button", class: "first", onclick: frame, disabled: true }, "Take this frame");
      video.addEventListener("loadeddata", () => (button.disabled = false));
      place.replaceChildren(video, el("p", { class: "buttons" }, button, el("button", { type: "button", onclick: close }, "Close the webcam")));
      place.hidden = false;
      button.focus();
    }
    return { place, open, close };
  }

  // --- the picture with a cross, a box and a heat map on it ---

  /**
   * The image as the network sees it; a place in it can be pointed at.
   * @param {object} answer of the server
   * @param {(row: number, column: number) => void} choose is called for a place
   */
  function canvasOf(answer, choose) {
    const [height, width] = answer.size;
    const box = svg("rect", { class: "own-box", visibility: "hidden" });
    const cross = svg("path", { class: "own-cross", visibility: "hidden" });
    const lines = svg("svg", { class: "own-lines", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" }, box, cross);
    const heat = el("canvas", { class: "own-heat", width, height, hidden: true, "aria-hidden": "true" });
    const said = el("p", { class: "meaning", role: "status" }, "Click a place, or move the cross with the arrow keys and press Enter: the units that see it.");
    const image = el("img", { src: answer.image, alt: "", width, height, draggable: "false" });
    const frame = el("div", {
      class: "own-picture", tabindex: 0, role: "application", "aria-roledescription": "image with a cross",
      "aria-label": `Your image as the network sees it, ${height} × ${width} pixels. The arrow keys move a cross, Enter asks which units see its place.`,
      style: { width: `${Math.min(window.innerWidth - 32, 448)}px`, aspectRatio: `${width} / ${height}` },
    }, image, heat, lines);
    let place = [Math.floor(height / 2), Math.floor(width / 2)];

    function move(row, column) {
      place = [Math.min(Math.max(row, 0), height - 1), Math.min(Math.max(column, 0), width - 1)];
      const [y, x] = [place[0] + 0.5, place[1] + 0.5];
      cross.setAttribute("d", `M${x} 0V${height}M0 ${y}H${width}`);
      cross.setAttribute("visibility", "visible");
      said.textContent = `Row ${place[0]}, column ${place[1]}.`;
    }
    frame.addEventListener("click", (event) => {
      const { left, top, width: wide, height: tall } = image.getBoundingClientRect();
      move(Math.floor(((event.clientY - top) / tall) * height), Math.floor(((event.clientX - left) / wide) * width));
      choose(...place);
    });
    frame.addEventListener("keydown", (event) => {
      const step = event.shiftKey ? 1 : Math.max(1, Math.round(Math.max(height, width) / 32));
      const moves = { ArrowUp: [-step, 0], ArrowDown: [step, 0], ArrowLeft: [0, -step], ArrowRight: [0, step] };
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (moves[event.key]) move(place[0] + moves[event.key][0], place[1] + moves[event.key][1]);
      else if (event.key === "Enter" || event.key === " ") {
        move(...place);
        choose(...place);
      } else return;
      event.preventDefault();
      event.stopPropagation();
    });

    return {
      frame, said,
      /** Show what a unit sees; null: nothing. */
      outline(seen) {
        box.setAttribute("visibility", seen ? "visible" : "hidden");
        if (!seen) return;
        const [top, left] = [Math.max(seen[0], 0.5), Math.max(seen[1], 0.5)];
        const [bottom, right] = [Math.min(seen[2], height - 0.5), Math.min(seen[3], width - 0.5)];
        for (const [name, value] of Object.entries({ x: left, y: top, width: Math.max(right - left, 1), height: Math.max(bottom - top, 1) })) box.setAttribute(name, value);
      },
      clearCross() {
        cross.setAttribute("visibility", "hidden");
      },
      /** Lay what a square takes from the class's probability over the image; null: nothing. */
      warm(maps) {
        heat.hidden = !maps;
        if (maps) paint(heat, maps);
      },
    };
  }

  /** Each pixel: the mean loss over the squares that cover it. Orange: less probable without it; blue: more. */
  function paint(canvas, { probability, boxes, clean }) {
    const { width, height } = canvas;
    const [sums, squares] = [new Float64Array(width * height), new Float64Array(width * height)];
    probability.forEach((line, i) => line.forEach((value, j) => {
      const [top, left, bottom, right] = boxes[i][j];
      for (let row = top; row < bottom; row++) {
        for (let at = row * width + left; at < row * width + right; at++) {
          sums[at] += clean - value;
          squares[at]++;
        }
      }
    }));
    const loss = sums.map((sum, at) => (squares[at] ? sum / squares[at] : 0));
    const most = loss.reduce((largest, value) => Math.max(largest, Math.abs(value)), 1e-12);
    const pixels = canvas.getContext("2d").createImageData(width, height);
    loss.forEach((value, at) => pixels.data.set([...(value > 0 ? [255, 140, 0] : [0, 90, 255]), Math.round((200 * Math.abs(value)) / most)], 4 * at));
    canvas.getContext("2d").putImageData(pixels, 0, 0);
  }

  // --- what the network says ---

  function classesOf(answer) {
    if (!answer.classes.length) return el("p", { class: "notice" }, answer.note);
    return el("table", { class: "plain own-classes" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Class"), el("th", { scope: "col" }, "Probability"))),
      el("tbody", {}, answer.classes.map((found) => el("tr", {}, el("th", { scope: "row" }, found.name || `class ${found.number}`),
        el("td", {}, el("span", { class: "amount", style: { width: `${Math.max(1, 96 * found.probability)}px` } }), percent(found.probability))))));
  }

  function occlusionOf(answer, picture, file, signal) {
    if (!answer.classes.length) return null;
    const said = el("p", { class: "meaning", role: "status" }, "Covers one place after the other with a grey square, and measures the probability of the class each time. This takes some seconds.");
    const choice = el("select", { id: "own-class" }, answer.classes.map((found) => el("option", { value: found.number }, found.name || `class ${found.number}`)));
    const button = el("button", { type: "button" }, "Occlusion map");
    let shown = false;
    const rest = (text) => {
      button.textContent = text;
      button.disabled = false;
    };
    const clear = () => {
      picture.warm(null);
      shown = false;
      said.textContent = "";
      rest("Occlusion map");
    };
    choice.addEventListener("change", clear);
    button.addEventListener("click", async () => {
      if (shown) return clear();
      button.disabled = true;
      button.textContent = "Asking …";
      try {
        const maps = await ask("occlusion", file, { class: choice.value }, signal);
        const name = choice.selectedOptions[0].textContent;
        picture.warm(maps);
        shown = true;
        said.textContent = `${name}: ${percent(maps.clean)} without a square, at least ${percent(Math.min(...maps.probability.flat()))} with one. Orange: where a square makes it less probable; blue: more.`;
        rest("Hide the occlusion map");
      } catch (error) {
        rest("Occlusion map");
        if (error.name !== "AbortError") said.textContent = error.message;
      }
    });
    return el("div", { class: "own-occlusion" }, el("div", { class: "controls forms" }, el("span", { class: "field" }, el("label", { for: "own-class" }, "Class"), choice), button), said);
  }

  /** One unit: what it sees and its projection, beside the nine of its map. */
  async function unitOf(L, found, file, signal) {
    const { source, index } = atlas;
    const layer = index.layers[L];
    const [unit, item] = await Promise.all([
      ask("projection", file, { layer: L, map: found.map, row: found.row, column: found.column }, signal),
      source.map(L, found.position),
    ]);
    const place = { source, L, row: found.position, map: found.map, item };
    const size = unit.whole ? index.image_size : [found.box[2] - found.box[0], found.box[3] - found.box[1]];
    const times = atlas.scaleTo(size, window.innerWidth < 460 ? 140 : 168);
    const measures = { width: Math.round(size[1] * times), height: Math.round(size[0] * times) };
    const sharp = Math.max(...size) < 40 ? "sharp" : null;
    const figure = (address_, words_) => el("figure", {}, el("span", { class: "own-tile", style: { width: `${measures.width}px` } }, el("img", { src: address_, alt: words_, ...measures, class: sharp }), unit.whole ? atlas.frame(source, found.box) : null), el("figcaption", {}, words_));
    const view = index.pixels === "none" ? "projection" : "pair";
    return [
      el("div", { class: "own-unit" },
        el("h3", {}, el("a", { href: address.map(layer.name, found.map) }, `${layer.name} map ${found.map}`)),
        el("p", { class: "value" }, sentence(words(found)), ` ${number(found.value)} at row ${found.row}, column ${found.column} of the map, from 0.`),
        el("span", { class: "own-figures" }, figure(unit.crop, "in your image"), figure(unit.projection, "its projection")),
        el("p", { class: "meaning" }, "Grey is zero; the projection has its own scale.")),
      el("div", { class: "own-nine" }, el("h3", {}, item.value.length ? `The ${item.value.length} images that are strongest` : "No image is strong"),
        item.value.length ? atlas.nine(place, view, { side: 56, brief: true }) : el("p", { class: "notice" }, `This map fires on none of the ${count(index.images, "image")} of this atlas.`)),
      el("div", { class: "own-how" }, el("h3", {}, "How unusual"), atlas.histogram(source, item, { mark: found.unclipped }), el("p", { class: "meaning" }, "The line: your image.")),
    ];
  }

  // --- the page ---

  atlas.pages.own = async (container) => {
    const { source, index } = atlas;
    const status = el("p", { class: "own-status", role: "status" });
    const result = el("div", { class: "own-result" });
    const leaving = new AbortController();
    let asking = new AbortController();

    const say = (message) => {
      status.className = message ? "own-status notice" : "own-status";
      status.textContent = message;
    };

    /** Ask about a picture, and show what is answered. */
    async function take(file, name) {
      asking.abort();
      asking = new AbortController();
      const { signal } = asking;
      if (file.size > served.bytes) return say(`${name} is larger than the ${Math.floor(served.bytes / 2 ** 20)} MiB that are taken.`);
      say("");
      status.textContent = `Asking the network about ${name} …`;
      result.setAttribute("aria-busy", "true");
      try {
        const answer = await ask("answers", file, {}, signal);
        kept = { file, name, answer };
        say("");
        status.textContent = `${name}: answered.`;
        await draw(signal);
      } catch (error) {
        if (error.name === "AbortError") return;
        if (!(error instanceof atlas.Sorry)) console.error(error);
        say(error.message);
      } finally {
        if (!signal.aborted) result.removeAttribute("aria-busy");
      }
    }

    /** Show the answer about the picture that is kept. */
    async function draw(signal) {
      const { file, name, answer } = kept;
      let layers = answer.layers;
      let chosen = layers.length - 1;
      let turn = 0;
      let unit = new AbortController();
      const heading = el("h2", { id: "own-maps" }, "Maps, the most unusual first");
      const explanation = el("p", { class: "meaning" });
      const back = el("button", { type: "button", class: "own-back", hidden: true }, "The whole image again");
      const detail = el("div", { class: "own-detail", "aria-live": "polite" });
      const list = el("div", {});
      const picture = canvasOf(answer, see);
      const tabs = index.layers.map((layer, L) => el("button", { type: "button", onclick: () => choose(L) }, layer.name));

      async function select(L, found, button) {
        const ticket = ++turn;
        unit.abort();
        unit = new AbortController();
        for (const other of list.querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === button));
        picture.outline(found.box);
        try {
          const parts = await unitOf(L, found, file, AbortSignal.any ? AbortSignal.any([unit.signal, signal]) : unit.signal);
          if (ticket === turn) detail.replaceChildren(...parts);
        } catch (error) {
          if (error.name === "AbortError" || ticket !== turn) return;
          detail.replaceChildren(el("p", { class: "notice", role: "alert" }, error.message));
        }
      }

      function choose(L) {
        chosen = L;
        tabs.forEach((tab, i) => tab.setAttribute("aria-pressed", String(i === L)));
        const kinds = index.pixels === "none" ? [1] : [0, 1];
        const items = layers[L].map((found) => {
          const button = el("button", {
            type: "button", class: "own-map", "aria-pressed": "false",
            onclick: () => select(L, found, button), onmouseenter: () => picture.outline(found.box), onfocus: () => picture.outline(found.box),
          }, el("span", { class: "pair" }, kinds.map((kind) => atlas.tile(L, found.position, "overview", kind, { target: 40 }))),
          el("span", { class: "about" }, el("b", {}, `map ${found.map}`), el("span", {}, words(found))));
          return el("li", {}, button);
        });
        const more = items.length > FIRST ? el("button", { type: "button", class: "own-more", onclick: () => {
          for (const item of items) item.hidden = false;
          items[FIRST].firstChild.focus();
          more.remove();
        } }, `${index.layers[L].rows > items.length ? "The" : "All"} ${count(items.length, "map")}${index.layers[L].rows > items.length ? " that are most unusual" : ""}`) : null;
        items.forEach((item, i) => (item.hidden = i >= FIRST));
        list.replaceChildren(...(items.length ? [el("ul", { class: "links own-list" }, items), more].filter(Boolean) : [el("p", { class: "notice" }, "No unit of this layer sees this place, or the fields of this layer are not known.")]));
        detail.replaceChildren();
        if (items.length) select(L, layers[L][0], items[0].firstChild);
        else picture.outline(null);
      }

      function explain(text, place) {
        back.hidden = !place;
        heading.textContent = place ? `Units that see the pixel at row ${place[0]}, column ${place[1]}` : "Maps, the most unusual first";
        explanation.textContent = text;
      }

      async function see(row, column) {
        picture.said.textContent = `Row ${row}, column ${column}: asking …`;
        try {
          const answered = await ask("place", file, { row, column }, signal);
          layers = answered.layers;
          picture.said.textContent = `Row ${row}, column ${column}: the units that see it are below.`;
          explain("For each map, the strongest unit that sees this place; the most unusual ones first.", [row, column]);
          choose(chosen);
        } catch (error) {
          if (error.name !== "AbortError") picture.said.textContent = error.message;
        }
      }

      const whole = "For each map, its strongest unit; first those that are stronger than the map's maximum in most of the atlas' images. Point at a map to see its unit's field.";
      back.addEventListener("click", () => {
        layers = answer.layers;
        picture.clearCross();
        explain(whole, null);
        choose(chosen);
        tabs[chosen].focus();
      });
      explain(whole, null);
      result.replaceChildren(
        el("div", { class: "columns own" },
          el("div", { class: "own-seen" }, el("h2", {}, "As the network sees it"), picture.frame, picture.said),
          el("div", {}, el("h2", {}, "Classes"), classesOf(answer), occlusionOf(answer, picture, file, leaving.signal))),
        heading, explanation, el("p", { class: "buttons" }, back),
        el("div", { class: "switch many", role: "group", "aria-label": "The layer" }, tabs),
        detail, list,
      );
      choose(chosen);
    }

    const input = el("input", { type: "file", id: "own-file", class: "unseen", accept: "image/*", onchange: () => input.files[0] && take(input.files[0], input.files[0].name) });
    const camera = webcam(take, say);
    const form = el("div", { class: "own-drop" },
      el("p", { class: "buttons" }, input, el("label", { for: "own-file", class: "button first" }, "Choose a picture"), el("button", { type: "button", onclick: camera.open }, "Webcam")),
      el("p", { class: "meaning" }, "Or drop a picture here, or paste one. It goes to the program on this computer that shows this page, and is not kept."));

    const listen = (name, heard) => document.addEventListener(name, heard, { signal: leaving.signal });
    listen("dragover", (event) => {
      event.preventDefault();
      form.classList.add("over");
    });
    listen("dragleave", (event) => event.relatedTarget ?? form.classList.remove("over"));
    listen("drop", (event) => {
      event.preventDefault();
      form.classList.remove("over");
      const file = pictureOf(event.dataTransfer);
      if (file) take(file, file.name);
      else say("What you dropped has no file: save the picture first, and drop its file.");
    });
    listen("paste", (event) => {
      if (event.target.closest?.("input, textarea")) return;
      const file = pictureOf(event.clipboardData);
      if (file) take(file, "the pasted picture");
      else say("There is no picture in what was pasted.");
    });

    atlas.add(container,
      el("div", { class: "heading" }, el("h1", { tabindex: -1 }, "Your own image")),
      el("p", { class: "lede" }, `What does ${index.model} see in it, and which of its maps find it unusual, against ${count(index.images, "image")}?`),
      form, camera.place, status, result);
    if (kept) await draw(leaving.signal);
    return {
      title: "Your own image",
      where: [["your own image", "#/own"]],
      leave() {
        camera.close();
        asking.abort();
        leaving.abort();
      },
    };
  };
})();
