"""Labels that the other rows contradict: cleanlab's confident learning over simple features.

Each row is predicted by a model that has not seen it (logistic regression on the pieces of its
words, in five folds); cleanlab (Northcutt et al. 2021) then tells which labels are likely wrong.
An extra, because it brings scikit-learn and pandas.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from timechat.errors import DataError

FOLDS = 5
FEATURES = 1 << 14


def find_label_noise(
    texts: list[str], labels: NDArray[np.int64], seed: int
) -> list[tuple[int, int]]:
    """Places whose label is likely wrong, each with the label that is likelier.

    Labels with fewer rows than there are folds are not judged. Raises DataError without cleanlab.
    """
    counts = np.bincount(labels, minlength=int(labels.max()) + 1)
    judged = np.flatnonzero(counts[labels] >= FOLDS)
    values, codes = np.unique(labels[judged], return_inverse=True)
    if len(values) < 2:
        return []
    filters, linear, selection, features, neural = (
        _extra(f"cleanlab{name}" if name == ".filter" else f"sklearn{name}")
        for name in (".filter", ".linear_model", ".model_selection", ".feature_extraction.text",
                     ".pipeline")
    )  # fmt: skip
    vectors = features.TfidfVectorizer(
        analyzer="char_wb", ngram_range=(2, 4), max_features=FEATURES, sublinear_tf=True
    )
    model = neural.make_pipeline(vectors, linear.LogisticRegression(max_iter=200))
    folds = selection.StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    chosen = [texts[i] for i in judged.tolist()]
    odds: Any = selection.cross_val_predict(model, chosen, codes, cv=folds, method="predict_proba")
    wrong = np.flatnonzero(filters.find_label_issues(codes, odds, n_jobs=1))
    likelier = odds.argmax(1)
    return [
        (int(judged[i]), int(values[likelier[i]]))
        for i in wrong.tolist()
        if likelier[i] != codes[i]
    ]


def _extra(name: str) -> Any:
    """An optional library; imported here because most runs do without it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise DataError(
            "data.clean.label_noise needs cleanlab and scikit-learn: "
            "install them with `pip install timechat[labels]`"
        ) from None
