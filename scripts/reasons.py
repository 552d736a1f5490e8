"""Why a result agrees with the paper or not, as far as it is known; `scripts/report.py` prints it below the numbers.

Each function takes the results of a claim by name, and returns a paragraph. Its numbers come from committed results.
"""

import json
from collections.abc import Mapping
from itertools import pairwise
from statistics import mean
from typing import Any

from experiments.output.results import ROOT, read_result

Results = Mapping[str, dict[str, Any]]
PARTS = ("right eye", "left eye", "nose")
IMAGENET = 1_280_000  # training images of the paper
FEW = 10  # epochs: what counts as a few


def padding(results: Results) -> str:
    """Figure 3."""
    return (
        "*What this checks.* The paper gives no padding. We chose the padding that gives the paper's sizes. So this "
        "checks our code; it is no evidence for or against what the paper found."
    )


def zeros(results: Results) -> str:
    """Table 1, layer 5: reversed, because two features that do not change agree."""
    words = (
        "*Why.* The distance counts features whose changes have different signs, and two zeros agree. Most features "
        "of layer 5 are zero with and without the mask. So a mask that changes more features gives a larger "
        "distance, whatever it hides. Masks of the eyes and the nose change more features than masks at random "
        "places, as the numbers above show. The paper does not say how zeros are counted."
    )
    variants = {
        "zeros drop": "With `zeros=drop`, features that change in neither image are left out.",
        "match changed": "With `match=changed`, random masks change about as many features as the part's.",
        "zeros drop, match changed": "With both settings, zeros are left out and the masks are matched.",
    }
    for name, meaning in variants.items():
        settings = dict(setting.split() for setting in name.split(", "))
        of = {
            place: result
            for place in (f"{plain}, {name}" for plain in results)
            if (result := committed(place)) and settings.items() <= result["settings"].items()
        }
        if of:
            lower = [lower_than_random(result, 0) for result in of.values()]
            words += (
                f"\n\n{meaning} The distance of the parts is smaller than that of random masks, with p below 0.05, for "
                f"{sum(lower)} of {3 * len(lower)} parts:\n\n"
                + "\n".join(f"- {linked(place)}: {distances(result, 0)}" for place, result in of.items())
            )
    return words + (
        "\n\n*What this does not show.* A part lies at similar places in different images, random masks do not. "
        "Features of layer 5 depend on places. How much of the agreement comes from the place alone was not measured."
    )


def lower_than_random(result: Mapping[str, Any], layer: int) -> int:
    """How many of the three parts have a smaller distance than random masks, with p below 0.05."""
    rows = [result["ours"][part][layer] for part in PARTS]
    return sum(row["mean"] < result["ours"]["random"][layer]["mean"] and row["p"] < 0.05 for row in rows)


def distances(result: Mapping[str, Any], layer: int) -> str:
    """The distance of each part and of random masks, and the share of features that a mask changes."""
    rows = {part: result["ours"][part][layer] for part in (*PARTS, "random")}
    words = []
    for part, row in rows.items():
        p = "" if row["p"] is None else f"p {row['p']:.4f}, "
        words.append(f"{part} {row['mean']:.3f} ({p}{row['changed']:.0%} of features)")
    return f"{', '.join(words[:-1])}; {words[-1]}"


def last_layer(results: Results) -> str:
    """Table 1, layer 7."""
    lower = sum(lower_than_random(result, 1) for result in results.values())
    return (
        f"*Why.* {lower} of {3 * len(results)} parts still change layer 7 more alike than random masks do. Masks of "
        "parts and random masks change about as many features here, so that zeros decide little. A reason for the "
        "difference from the paper is not known."
    )


def dead_maps(results: Results) -> str:
    """Figure 6: more dead maps with 7x7 and a stride of 2."""
    counts = published("dead_maps")
    dead = sum(of["relu2"]["dead"] for of in counts.values())
    maps = sum(of["relu2"]["maps"] for of in counts.values())
    rate = max((result["settings"]["recipe"]["learning_rate"] for result in results.values()), default=0.01)
    rates = [
        words.split()[0] for _, _, words in (of["command"].partition("train.learning_rate=") for of in trainings())
    ]
    return (
        "*Why.* A map dies when a step of training makes it negative on every image: a ReLU then stops its gradient. "
        f"This depends on the learning rate. At {rate:g}, the paper's rate, maps die. In the published networks, "
        f"trained at {' and '.join(sorted(rates))}, {dead} of {maps} maps of layer 2 are dead. Why more of them die "
        "behind 7x7 filters than behind 11x11 filters is not known. The paper shows dead filters of layer 1 and "
        "gives no counts; here layer 1 has none."
    )


def trainings() -> list[dict[str, Any]]:
    """How each published network was trained."""
    return list(published("training").values())


def no_dead_filters(results: Results) -> str:
    """Figure 6, layer 1."""
    if any(rate for of in results.values() for row in of["ours"]["each"].values() for rate in row["dead_filters"]):
        return ""
    return (
        "*Why.* No first-layer filter died in any of these networks, so there is nothing to compare. A map of layer "
        "1 sees the image itself, and training seldom makes it negative everywhere."
    )


def lattice(results: Results) -> str:
    """Figure 6 d and e."""
    return (
        "*Why.* A projection is a sum of first-layer filters that are placed one stride apart. Both strides leave "
        "this lattice. With a stride of 2 it is finer, and the eye may miss it; the power spectrum does not. The "
        "paper judges by eye."
    )


def dominance(results: Results) -> str:
    """Figure 6 a and c."""
    names = ("fig3 not renormalised", "fig3")
    rows = [[of["ours"]["each"][name]["largest_rms_over_median"] for name in names] for of in results.values()]
    pairs = [
        (a, b) for without, ours in rows for a, b in zip(without, ours, strict=True) if a is not None and b is not None
    ]
    larger = sum(a > b for a, b in pairs)
    return (
        f"*What is confirmed.* The largest filter is larger without renormalisation in {larger} of {len(pairs)} pairs "
        "of networks of one seed. The thresholds of 2 and 1.7 are ours, and these networks are trained for a shorter "
        "time than the paper's."
    )


def quasi_linear(results: Results) -> str:
    """Figure 5, layers 1 and 7."""
    pairs = [result["ours"][kind]["linearity"] for result in results.values() for kind in ("translation", "scale")]
    jumps, follows = (sum(test) for test in zip(*((one < 0, seven > 0.5) for one, seven in pairs), strict=True))
    above = sum(seven > one for one, seven in pairs)
    return (
        f"*What is confirmed.* Layer 1 jumps (below 0) in {jumps} of {len(pairs)} cases, and layer 7 is more linear "
        f"than layer 1 in {above} of {len(pairs)}. Layer 7 is above our threshold of 0.5 in {follows} of {len(pairs)}."
    )


def scaling(results: Results) -> str:
    """Figure 5: not stable to scale."""
    kept = [
        [result["ours"][kind]["probability_kept"] for result in results.values()] for kind in ("translation", "scale")
    ]
    ranges = {tuple(result["ours"]["scale"]["range"]) for result in results.values()}
    largest = max(high for _, high in ranges)
    return (
        f"*Why.* Translation keeps {spread(kept[0])} of the probability, and scale {spread(kept[1])}. At the largest "
        f"scale, {largest:g}, {1 - largest**-2:.0%} of the image's area lies outside the frame. Training shows images "
        "shifted and mirrored, but always at one scale. Both are so in the paper as well. They may explain why scale "
        "is harder than translation, but not why our networks differ from the paper's. We have not tested this."
    )


def turning(results: Results) -> str:
    """Figure 5: not stable to rotation."""
    return (
        "*How sure it is.* Five images are as many as in the paper, but too few for an interval. A turn by any angle "
        "is compared with shifts and scales over the paper's ranges; other ranges would give other numbers."
    )


def settling(results: Results) -> str:
    """Figure 4."""
    images = {result["ours"]["images"] for result in results.values()}
    epochs = {max(result["ours"]["epochs"]) for result in results.values()}
    if len(images) != 1 or len(epochs) != 1:
        return ""
    (one,), (last,) = images, epochs
    return (
        f"*Why.* An epoch has {one:,} images here and about {IMAGENET:,} in the paper. All {last} epochs together "
        f"show {one * last / IMAGENET:.0%} of the images that the paper's first epoch shows. So layers still change "
        f"at the end, and the first layer takes longer than {FEW} epochs."
    )


def depth(results: Results) -> str:
    """Table 3, removed layers."""
    result = next(iter(results.values()), None)
    if result is None:
        return ""
    images, classes = result["settings"]["images"], len(result["settings"]["classes"])
    changes = {name: of["validation_top1"]["mean"] for name, of in result["ours"]["difference"].items()}
    inner, outer = (changes.get(f"krizhevsky without layers {n}") for n in ("3, 4", "6, 7"))
    words = (
        f"*Why.* These networks see {images:,} images of 64 pixels in {classes} classes. The paper's see about "
        f"{IMAGENET:,} of 224 pixels in 1,000."
    )
    if inner is not None and outer is not None and outer <= 0 < inner:
        words += (
            " Here the convolutions 3 and 4 matter, and the fully connected layers 6 and 7 do not. We think that few "
            "classes need few of their units."
        )
    return words + " What happens at the paper's size was not measured."


def width(results: Results) -> str:
    """Table 3, wider layers."""
    return (
        "*Why.* Each of these networks was trained with one seed, so there is no interval. All networks are narrower "
        "than the paper's, and are widened by the paper's factors."
    )


def fits(results: Results) -> str:
    """Table 3, underfitting."""
    result = next(iter(results.values()), None)
    inner = result["ours"]["difference"].get("krizhevsky without layers 3, 4") if result else None
    if inner is None or inner["train_top1"]["mean"] is None:
        return ""
    return (
        "*What differs.* Without layers 3 and 4 alone the train error rises by "
        f"{inner['train_top1']['mean']:.1f} points. In the paper it rises by 6.7 points, against 36.0 without all "
        "four. So here it is the convolutions that the network lacks, and not depth as such."
    )


def sixth(results: Results) -> str:
    """Table 2, the sixth network."""
    words = ["*What differs.*"]
    for result in results.values():
        error, images = result["ours"]["error"], result["settings"]["validation_images"]
        five, six = (error[row]["validation_top5"] for row in ("Figure 3, 5 nets (a)", "(a) and (b), 6 nets"))
        change = round((six - five) / 100 * images)
        words.append(f"The top-5 error changes by {change:+d} of {images:,} images.")
    words.append("All networks are narrower than the paper's, and the sixth is widened by the paper's factors.")
    return " ".join(words)


def transfer(results: Results) -> str:
    """Tables 4 and 5."""
    each = [result["ours"]["each"] for result in results.values()]
    wins: dict[bool, set[int]] = {True: set(), False: set()}
    for rows in each:
        for n, rates in rows["pretrained"].items():
            wins[mean(rates) > mean(rows["from scratch"][n])].add(int(n))
    better = ", ".join(map(str, sorted(wins[True]))) or "no number of"
    words = f"*What is confirmed.* On average pretraining wins with {better} images a class, as in the paper."
    for n in sorted(wins[False]):
        pairs = [
            pair
            for rows in each
            if str(n) in rows["pretrained"]
            for pair in zip(rows["pretrained"][str(n)], rows["from scratch"][str(n)], strict=True)
        ]
        won = sum(pretrained > scratch for pretrained, scratch in pairs)
        words += f" With {n} it does not: it wins in {won} of {len(pairs)} folds."
    return words + (
        " The new scenes are rendered by the program that rendered those of the pretraining. We think that a small "
        "network can learn them from few images. A guess is right for one image in eight."
    )


def deeper(results: Results) -> str:
    """Table 7."""
    accuracies = {
        name: [result["ours"]["accuracy"][f"SVM ({n})"] for n in (1, 2, 3, 4, 5)] for name, result in results.items()
    }
    rising = [linked(name) for name, rates in accuracies.items() if all(b > a for a, b in pairwise(rates))]
    return (
        f"*What is confirmed.* Each layer beats the one before in {', '.join(rising) or 'no result'}. That network "
        "was trained on ImageNet. The small networks saw few images. We think that their deeper layers fit the classes "
        "of their training. At 64 pixels their deeper layers also have fewer features."
    )


def occlusion(results: Results) -> str:
    """Figure 7."""
    return (
        "*The control.* Objects stand near the middle of these images, so a square at a fixed place is often on the "
        "object. The best fixed place is chosen with the answers known; the measured squares are on the object more "
        "often than it is. A square is on the object if its centre is; chance is the share of all squares of which "
        "this is so.\n\n"
        "*What this does not show.* It is one network of one seed. A background that says nothing of the class makes "
        "the claim easier to confirm than on photographs."
    )


def ranks(results: Results) -> str:
    """How many of the strongest images change with the filter that resizes photographs."""
    file = ROOT / "results" / "bench" / "resizing.json"
    if not file.exists():
        return ""
    known = json.loads(file.read_text(encoding="utf-8"))
    each = ", ".join(f"{row['ranks_changed']:.0%} in {row['layer']}" for row in known["rows"])
    first, second = known["filters"]
    return (
        f"The strongest images of a map depend on the filter that resizes photographs. We scanned {known['images']} "
        f"photographs with {known['network']}, once with {first} and once with {second} resizing. Another image holds "
        f"{known['ranks_changed']:.0%} of the {known['k']} ranks of {known['maps']:,} maps. On average "
        f"{known['images_shared']:.1f} of a map's {known['k']} images are the same. By layer these shares of the ranks "
        f"change: {each}.\n\n```bash\n{known['command']} --json results/bench/resizing.json\n```"
    )


def committed(name: str) -> dict[str, Any] | None:
    """A result in results/, or None."""
    file = ROOT / "results" / name / "result.json"
    return read_result(file) if file.exists() else None


def published(key: str) -> dict[str, Any]:
    """One entry of what is known of each published network."""
    files = sorted((ROOT / "published").glob("*.json"))
    return {file.stem: json.loads(file.read_text(encoding="utf-8"))[key] for file in files}


def linked(name: str, root: str = "..") -> str:
    """A link to a result, from a page whose path to the repository's root is given."""
    path = f"{root}/results/{name}/result.json"
    return f"[{name}](<{path}>)" if " " in name else f"[{name}]({path})"


def spread(values: list[float]) -> str:
    """The least and the largest of several numbers."""
    return f"{min(values):.2f} to {max(values):.2f}"
