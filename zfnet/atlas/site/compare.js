/*
 * The page of several maps side by side: a list that is all in its address, so that it can be sent to somebody.
 *
 * `with=../other` names the folder of another atlas beside this one: of each map in the list, that of the other atlas
 * comes beside it. The page says in what the two atlases differ.
 */
"use strict";

(() => {
  const { el, address, number, percent, count } = atlas;

  /** The maps that an address lists: "relu3:17,relu5:3". */
  function list(text) {
    return text
      .split(",")
      .filter(Boolean)
      .map((unit) => {
        const [, name, map] = /^(.*):(\d+)$/s.exec(unit) ?? [];
        if (map === undefined)
          throw new atlas.Sorry(
            `“${unit}” does not name a map; write the layer, a colon and the number, like relu3:17.`,
          );
        return [decodeURIComponent(name), Number(map)];
      });
  }

  /** The other atlas; only folders beside or below this one, so that an address cannot make the page load a stranger's script. */
  async function other(folder) {
    const clean = folder.replace(/\/+$/, "") + "/";
    if (!/^(\.\.?\/|[^:/\\?#][^:\\?#]*\/)/.test(clean) || /[:\\?#]|\/\//.test(clean)) {
      throw new atlas.Sorry(`“${folder}” is not a folder as seen from this atlas, like ../other-atlas.`);
    }
    const path = clean.split("/").map(encodeURIComponent).join("/");
    const source = atlas.sources.get(path) ?? new atlas.Source(path);
    await source.load("index");
    return source;
  }

  /** In what two atlases differ, in sentences. */
  function differences(one, two) {
    const found = [];
    const differ = (name) => one.provenance?.[name] !== two.provenance?.[name];
    const network = one.model !== two.model || differ("architecture");
    if (network)
      found.push(
        `They show different networks (${one.model}; ${two.model}): maps with the same number are not related.`,
      );
    else if (differ("weights")) found.push("The network is the same, but the weights differ.");
    if (one.dataset !== two.dataset || one.images !== two.images)
      found.push(
        `They show different images (${count(one.images, "image")} of ${one.dataset}; ${count(two.images, "image")} of ${two.dataset}): values and crops cannot be compared one by one.`,
      );
    if (one.rules !== two.rules) found.push(`Their projections follow different rules (${one.rules}; ${two.rules}).`);
    return found.length ? found : ["Both show the same network, with the same weights, on the same images."];
  }

  /** A column: one map of one atlas. */
  async function column(source, name, map, view, remove) {
    const elsewhere = source !== atlas.source;
    const head = el(
      "h2",
      {},
      el(
        "a",
        { href: source.folder ? `${source.folder}index.html${address.map(name, map)}` : address.map(name, map) },
        `${name} map ${map}`,
      ),
    );
    const kind = elsewhere ? el("p", { class: "meaning" }, `in ${source.index.title}`) : null;
    try {
      const place = { source, ...(await atlas.findMap(source, name, String(map))) };
      const { item } = place;
      const best = item.classes?.[0];
      const facts = [
        ["Strongest value", number((item.unclipped ?? item.value)[0] ?? null)],
        ["Fires on", `${percent(item.fires)} of the images`],
        best
          ? [
              "Preferred class",
              `${atlas.short(source.className(best[0]) ?? "none", 24)}, ${percent(best[2])} of the nine`,
            ]
          : null,
      ];
      const none = source.index.pixels === "none";
      const shown = none ? "projection" : view;
      const tiles = item.value.length
        ? atlas.nine(place, shown, {
            side: shown === "pair" ? (window.innerWidth < 460 ? 50 : 56) : 100,
            brief: true,
            links: !elsewhere,
          })
        : el("p", { class: "notice" }, "A dead map: above zero on no image.");
      return el(
        "li",
        {},
        el("div", { class: "heading" }, head, remove),
        kind,
        tiles,
        atlas.histogram(source, item, { width: 300, height: 140 }),
        atlas.terms(facts.filter(Boolean)),
      );
    } catch (error) {
      if (!(error instanceof atlas.Sorry)) throw error;
      return el(
        "li",
        {},
        el("div", { class: "heading" }, head, remove),
        kind,
        el("p", { class: "notice" }, error.message),
      );
    }
  }

  atlas.pages.units = async (container, { parts: [text = ""], query }) => {
    const { source, index } = atlas;
    const units = list(text);
    const second = query.with ? await other(query.with) : null;
    const views = index.pixels === "none" ? ["projection"] : ["pair", "crop", "projection", "masked"];
    const names = { pair: "Crop and projection", crop: "Crop", projection: "Projection", masked: "Masked crop" };
    const go = (next, changes) =>
      atlas.navigate(address.units(next, { with: query.with, view: query.view, ...changes }));
    let view;
    const columns = el("ul", { class: second ? "compared two" : "compared" });
    const buttons = views.map((name) =>
      el(
        "button",
        { type: "button", "data-view": name, onclick: () => go(units, { view: name === views[0] ? null : name }) },
        names[name],
      ),
    );

    async function draw(wanted) {
      view = views.includes(wanted) ? wanted : views[0];
      for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.view === view));
      const parts = units.flatMap(([name, map], i) => {
        const remove = el(
          "button",
          {
            type: "button",
            "aria-label": `Remove ${name} map ${map}`,
            onclick: () => go(units.filter((_, j) => j !== i)),
          },
          "×",
        );
        return [column(source, name, map, view, remove), second ? column(second, name, map, view) : null];
      });
      columns.replaceChildren(...(await Promise.all(parts)).filter(Boolean));
    }
    await draw(query.view);

    const layer = el(
      "select",
      { id: "add-layer" },
      index.layers.map(({ name }) => el("option", { value: name }, name)),
    );
    if (units.length) layer.value = units.at(-1)[0];
    const map = el("input", { id: "add-map", type: "number", min: 0, step: 1, required: true });
    const add = (event) => {
      event.preventDefault();
      go([...units, [layer.value, Number(map.value)]]);
    };
    const folder = el("input", {
      id: "with",
      type: "text",
      value: query.with ?? "",
      placeholder: "../other-atlas",
      autocomplete: "off",
      spellcheck: "false",
    });
    const beside = (event) => {
      event.preventDefault();
      go(units, { with: folder.value.trim() || null });
    };
    const link = el("input", {
      id: "share",
      type: "text",
      readonly: true,
      value: location.href,
      onfocus: () => link.select(),
    });
    const copy = async () => {
      try {
        await navigator.clipboard.writeText(location.href);
        atlas.tell("The address is in the clipboard.");
      } catch {
        link.focus();
        atlas.tell("The browser does not let this page copy: the address is selected, copy it with your keyboard.");
      }
    };
    const sentences = second ? differences(index, second.index) : [];
    atlas.add(
      container,
      el("h1", { tabindex: -1 }, units.length ? `${count(units.length, "map")} side by side` : "Maps side by side"),
      units.length ? null : el("p", { class: "lede" }, "The list is empty: add a map."),
      second
        ? el(
            "div",
            { class: sentences[0].startsWith("Both") ? "licence" : "notice", role: "note" },
            el("p", {}, el("b", {}, `${index.title} and ${second.index.title}. `), sentences.join(" ")),
          )
        : null,
      el(
        "div",
        { class: "controls forms" },
        el(
          "form",
          { onsubmit: add },
          el("span", { class: "field" }, el("label", { for: "add-layer" }, "Layer"), layer),
          el("span", { class: "field" }, el("label", { for: "add-map" }, "Map"), map),
          el("button", {}, "Add"),
        ),
        el(
          "form",
          { onsubmit: beside },
          el("span", { class: "field" }, el("label", { for: "with" }, "Folder of another atlas"), folder),
          el("button", {}, "Compare with it"),
        ),
        views.length > 1
          ? el("span", { class: "field switch", role: "group", "aria-label": "What each tile shows" }, buttons)
          : null,
      ),
      columns,
      units.length
        ? el(
            "p",
            { class: "meaning" },
            "In order of strength. Grey is zero; each projection has its own scale; histograms have their own axes.",
          )
        : null,
      el(
        "div",
        { class: "field share" },
        el("label", { for: "share" }, "The address of this list"),
        el("span", { class: "joined" }, link, el("button", { type: "button", onclick: copy }, "Copy")),
      ),
    );
    return {
      title: units.length ? units.map(([name, number]) => `${name} ${number}`).join(", ") : "Compare",
      where: [["compare", address.units(units, { with: query.with })]],
      update(place) {
        if ((place.query.with ?? null) !== (query.with ?? null)) return atlas.show();
        query.view = place.query.view;
        link.value = location.href;
        return draw(query.view);
      },
    };
  };
})();
