"""What the fused head sees, in two dimensions: the paper's Figure 6."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from sklearn.neighbors import KNeighborsClassifier

from .clips import HeldClips
from .figures import caption, colours, figure_style, panels, plt, save_figure
from .statistics import accuracy_interval
from .trained import TrainedModel

MARKERS = "o^sDvPX*"


def concatenated_embeddings(trained: TrainedModel, clips: HeldClips) -> np.ndarray:
    """The concatenated features of all modalities, ``(N, sum d)`` float64.

    After each modality's normalisation, as the fused head gets them.
    """
    rows = [out.fused_features.cpu().numpy() for out, _ in clips.outputs(trained.model)]
    return np.concatenate(rows).astype(np.float64)


def tsne(features: np.ndarray, perplexity: float = 30.0, seed: int = 0) -> np.ndarray:
    """t-SNE (van der Maaten and Hinton 2008) by scikit-learn, started from PCA.

    Distances between clusters, and their sizes, mean nothing in such a map.

    Args:
        features: ``(N, d)``.
        perplexity: How many neighbours count; at most a third of the clips is used.
        seed: Of scikit-learn.

    Returns:
        ``(N, 2)``; equal input on one machine gives equal output.

    Raises:
        ValueError: With fewer than four clips.
    """
    if len(features) < 4:
        raise ValueError(f"t-SNE needs at least four clips; got {len(features)}")
    perplexity = min(perplexity, (len(features) - 1) / 3)
    return TSNE(
        n_components=2, perplexity=perplexity, init="pca", random_state=seed
    ).fit_transform(features)


def neighbours_agree(
    features: np.ndarray, labels: np.ndarray, neighbours: int = 5
) -> float:
    """Accuracy of each clip's class by its nearest other clips.

    Args:
        features: ``(N, d)``.
        labels: ``(N,)``.
        neighbours: k, Euclidean; a clip is not its own neighbour. Ties go to the
            smaller class index, as in scikit-learn.

    Returns:
        A share of the N clips.
    """
    classifier = KNeighborsClassifier(min(neighbours, len(labels) - 1))
    nearest = classifier.fit(features, labels).kneighbors(return_distance=False)
    voted = labels[nearest]  # (N, k)
    classes = np.unique(labels)
    votes = (voted[:, :, None] == classes).sum(axis=1)  # (N, classes)
    return float((classes[votes.argmax(axis=1)] == labels).mean())


def embedding_scores(
    features: np.ndarray, labels: np.ndarray, neighbours: int = 5
) -> dict[str, float]:
    """How well classes are separated, in all dimensions and not in the picture.

    Args:
        features: ``(N, d)``.
        labels: ``(N,)``.
        neighbours: Of :func:`neighbours_agree`.

    Returns:
        ``silhouette`` (Rousseeuw 1987, mean over clips, in [-1, 1]; not-a-number with
        one class, or one clip per class), ``knn`` with Wilson's interval ``knn_low``
        and ``knn_high``, ``neighbours`` and ``N``.
    """
    kinds, count = len(np.unique(labels)), len(labels)
    enough = 2 <= kinds <= count - 1
    accuracy = neighbours_agree(features, labels, neighbours)
    low, high = accuracy_interval(accuracy, count)
    return dict(
        silhouette=float(silhouette_score(features, labels))
        if enough
        else float("nan"),
        knn=accuracy,
        knn_low=low,
        knn_high=high,
        neighbours=min(neighbours, count - 1),
        N=count,
    )


def measure_embeddings(
    trained: TrainedModel,
    clips: HeldClips,
    perplexity: float = 30.0,
    seed: int = 0,
    neighbours: int = 5,
) -> tuple[pd.DataFrame, dict[str, float]]:
    """The map of the clips, and the numbers that belong to it.

    Returns:
        Columns sample_id, domain, label, class, x and y, one row per clip; and
        :func:`embedding_scores`.
    """
    features = concatenated_embeddings(trained, clips)
    position = tsne(features, perplexity, seed)
    names = trained.classes or tuple(map(str, range(int(clips.labels.max()) + 1)))
    frame = pd.DataFrame(
        dict(
            sample_id=clips.sample_ids,
            domain=clips.domains,
            label=clips.labels,
            x=position[:, 0],
            y=position[:, 1],
        )
    )
    frame.insert(3, "class", [names[label] for label in clips.labels])
    return frame, embedding_scores(features, clips.labels, neighbours)


def draw_embeddings(
    frame: pd.DataFrame, scores: pd.DataFrame, path: str | os.PathLike
) -> list[Path]:
    """A map per run: a colour per class, a marker per domain.

    Args:
        frame: Of :func:`measure_embeddings`, with a column run.
        scores: Its scores, with a column run.
        path: Without suffix.

    Returns:
        The files.
    """
    classes = frame.drop_duplicates("label").sort_values("label")["class"].tolist()
    domains, palette = frame["domain"].unique(), colours(classes)
    runs = frame["run"].unique()
    with figure_style(), plt.rc_context({"axes.grid": False}):
        figure, axes = panels(1, len(runs), height=2.7)
        for ax, run in zip(axes[0], runs, strict=True):
            own = frame[frame["run"] == run]
            for (name, domain), group in own.groupby(["class", "domain"]):
                marker = MARKERS[list(domains).index(domain) % len(MARKERS)]
                ax.scatter(group["x"], group["y"], s=9, marker=marker, lw=0.2,
                           color=palette[name], edgecolors="w")  # fmt: skip
            score = scores[scores["run"] == run].iloc[0]
            ax.set_title(
                f"{run}\nsilhouette {score.silhouette:.2f}, "
                f"{score.neighbours:.0f}-NN {100 * score.knn:.1f} % "
                f"[{100 * score.knn_low:.0f}, {100 * score.knn_high:.0f}]"
            )
            ax.set(xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
            ax.spines[["top", "right"]].set_visible(True)
            ax.set_box_aspect(1)
        # Empty drawings for the legend: a colour each, then a marker each.
        keys = [plt.Line2D([], [], marker="o", ls="", ms=4, color=palette[name],
                           label=name) for name in classes]  # fmt: skip
        keys += [
            plt.Line2D([], [], marker=MARKERS[i % len(MARKERS)], ls="", ms=4,
                       color="w", mec="k", mew=0.6, label=domain)
            for i, domain in enumerate(domains)
        ]  # fmt: skip
        figure.legend(
            handles=keys,
            loc="outside upper center",
            ncols=min(len(keys), int(4 * figure.get_figwidth() / 3.3)),
        )
        caption(
            figure,
            f"t-SNE of the concatenated embeddings of N = {len(own)} clips "
            f"({', '.join(domains)}). Silhouette and nearest neighbours are those of "
            "the embeddings, not of the map; 95 % interval.",
        )
        return save_figure(figure, path, frame)
