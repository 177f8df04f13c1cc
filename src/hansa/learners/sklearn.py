"""scikit-learn's estimators as learners: those whose fitted state is a set of coefficients that average soundly.

Classifiers keep class numbers 0 .. classes - 1 as their ``classes_``. Coefficients travel as float64.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import sklearn.base
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    Perceptron,
    Ridge,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.neural_network import MLPClassifier, MLPRegressor

from hansa.errors import ConfigError, DataError, nearest
from hansa.examples import Examples
from hansa.learner import LocalWork, Metrics
from hansa.learners import checks, metrics
from hansa.params import Layout, Params
from hansa.rng import Key
from hansa.tensor import Array, Tensor
from hansa.update import Update

_STEPPED = (SGDClassifier, SGDRegressor, Perceptron)
_NETWORKS = (MLPClassifier, MLPRegressor)
_SOLVED = (LogisticRegression, LinearRegression, Ridge)
_KNOWN: dict[str, Any] = {kind.__name__: kind for kind in (*_STEPPED, *_NETWORKS, *_SOLVED)}


@final
@dataclass(frozen=True, slots=True)
class Sklearn:
    """One scikit-learn estimator as a learner.

    ``SGDClassifier``, ``SGDRegressor``, ``Perceptron``, ``MLPClassifier`` and ``MLPRegressor`` take one ``partial_fit`` an
    epoch from the received coefficients; ``LogisticRegression`` starts ``fit`` at them (``warm_start``) and goes on for its own
    ``max_iter``; ``LinearRegression`` and ``Ridge`` solve the party's own data exactly, so one round is one-shot
    averaging. Estimators whose state does not average (trees, neighbours, ``GaussianNB``, ...) are refused.

    *Guarantees*: one epoch at one party equals the plain estimator's ``partial_fit`` from the same coefficients bit for bit,
    with ``random_state=seed(rng)``. A party's optimizer state (step counts, moments) starts anew in every round.
    ``scalars["loss"]`` is the loss after the local training.

    >>> from sklearn.linear_model import SGDClassifier
    >>> data = Examples(np.array([[0.0], [1.0]]), np.array([0, 1]))
    >>> learner = Sklearn(SGDClassifier(loss="log_loss"))
    >>> learner.init(Key.root(0), data)["coef_"].shape
    (1, 1)

    Args:
        estimator: an instance, whose settings are copied; or ``"sklearn.linear_model:SGDClassifier"``.
        classes: number of classes, at least 2; None takes the largest label of the arrays that ``init`` sees, plus 1.
        epochs: local epochs, at least 1.
        params: settings of the estimator, where it is given by name.

    Raises:
        ConfigError: an estimator or a setting that cannot be used, or a local work that scikit-learn cannot honour.
        DataError: examples that do not fit the model, labels out of range, NaN or infinity.
    """

    estimator: Any
    classes: int | None = None
    epochs: int = 1
    params: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks.count("Sklearn.epochs", self.epochs)
        if self.classes is not None:
            checks.count("Sklearn.classes", self.classes, least=2)
            if not sklearn.base.is_classifier(_made(self)):
                raise ConfigError(
                    f"Sklearn.classes has no meaning for {_name(self)}, which predicts numbers; leave it out"
                )
        made = _made(self)
        try:
            made._validate_params()
        except ValueError as error:
            raise ConfigError(f"{_name(self)} of scikit-learn refuses a setting: {error}") from error
        if isinstance(made, _SOLVED) and self.epochs != 1:
            raise ConfigError(f"{_name(self)} solves its local problem in one go; leave Sklearn.epochs at 1")
        if isinstance(made, _NETWORKS) and made.solver == "lbfgs":
            raise ConfigError(f"{_name(self)} has no partial_fit with solver 'lbfgs'; use 'sgd' or 'adam'")
        if isinstance(made, (*_STEPPED, *_NETWORKS)) and made.early_stopping:
            raise ConfigError(f"{_name(self)} has no partial_fit with early_stopping; leave it out")
        if isinstance(made, SGDClassifier | SGDRegressor) and made.average:
            raise ConfigError(f"{_name(self)}(average=...) keeps a running mean that cannot be averaged; leave it out")
        if isinstance(made, LogisticRegression) and made.solver == "liblinear":
            raise ConfigError(
                "LogisticRegression cannot start at given coefficients with solver 'liblinear'; use 'lbfgs'"
            )

    def init(self, rng: Key, example: Examples) -> Params:
        """Zeros; for the networks, scikit-learn's own random weights from ``rng``."""
        made = _made(self)
        features = int(np.prod(example.base[0].shape[1:], dtype=np.int64))
        classes = _classes(self, example)
        _read(_name(self), example, features, classes)
        if isinstance(made, _NETWORKS):
            return _initial_network(made, features, classes, example, rng)
        y = example.base[1]
        flat_output = classes is None and y.ndim == 1
        if classes is None and not flat_output and isinstance(made, _STEPPED):
            raise DataError(f"{_name(self)} predicts one number but the targets have shape {y.shape}; give shape (n,)")
        outputs = y.shape[-1] if classes is None else 1 if classes == 2 else classes
        shape = (features,) if flat_output else (outputs, features)
        tensors = {"coef_": np.zeros(shape), "intercept_": np.zeros(1 if flat_output else shape[0])}
        return Params.of(tensors, dtype="float64")

    def fit(self, params: Params, data: Examples, work: LocalWork, rng: Key) -> Update:
        """Train one party; a party without examples gives a zero update of weight 0."""
        name = _name(self)
        _check_work(name, work)
        made = _made(self)
        classes, features = _shape(self, params)
        x, y = _read(name, data, features, classes)
        epochs = self.epochs if work.epochs is None else work.epochs
        if isinstance(made, _SOLVED) and epochs > 1:
            raise ConfigError(
                f"the algorithm asks for {epochs} epochs but {name} solves its local problem in one go; ask for 1"
            )
        if len(data) == 0 or epochs == 0:
            return Update(Tensor(np.zeros_like(params.flat)), float(len(data)), {"loss": 0.0, "steps": 0.0})
        with warnings.catch_warnings():
            # Few local iterations are the method, so an unfinished local fit is no news.
            warnings.simplefilter("ignore", ConvergenceWarning)
            if isinstance(made, _SOLVED):
                fitted, steps = _solve(made, params, x, y, classes, rng), 1
            else:
                fitted, steps = _partial(made, params, x, y, classes, epochs, rng)
        delta = _coefficients(fitted, params.layout) - params.flat
        loss = _measure(fitted, x, y, classes)["loss"]
        return Update(Tensor(delta), float(len(y)), {"loss": loss, "steps": float(steps)})

    def fit_many(
        self, params: Params, datas: Sequence[Examples], works: Sequence[LocalWork], rngs: Sequence[Key]
    ) -> list[Update]:
        """``fit`` for each party, one after the other."""
        return [self.fit(params, d, w, r) for d, w, r in zip(datas, works, rngs, strict=True)]

    def evaluate(self, params: Params, data: Examples) -> Metrics:
        """``loss`` and ``accuracy``, or ``loss``, ``mse`` and ``mae``.

        A classifier's loss is the cross-entropy where it gives probabilities, else the share of wrong labels.
        """
        if len(data) == 0:
            raise DataError(
                f"{_name(self)} cannot evaluate on no examples; leave out the parties whose test part is empty"
            )
        classes, features = _shape(self, params)
        x, y = _read(_name(self), data, features, classes)
        return _measure(_placed(_made(self), params, classes), x, y, classes)

    def evaluate_many(self, params: Params, datas: Sequence[Examples]) -> list[Metrics]:
        """``evaluate`` for each party."""
        return [self.evaluate(params, data) for data in datas]

    def chunk(self, params: Params) -> int:
        """Few, since nothing is gained by more."""
        return 4


def seed(rng: Key, epoch: int = 0) -> int:
    """The ``random_state`` that a training with ``rng`` uses in its local ``epoch``."""
    return int.from_bytes((rng if epoch == 0 else rng.child("epoch", epoch)).digest[:4], "little")


def _name(learner: Sklearn) -> str:
    return str(
        learner.estimator.rpartition(":")[2] if isinstance(learner.estimator, str) else type(learner.estimator).__name__
    )


def _made(learner: Sklearn) -> Any:
    """A fresh, unfitted estimator."""
    given = learner.estimator
    if not isinstance(given, str):
        if type(given) not in _KNOWN.values():
            raise _refusal(type(given).__name__)
        if learner.params:
            raise ConfigError("Sklearn.params go with an estimator given by name; set them on the instance instead")
        return sklearn.base.clone(given)
    kind = _KNOWN.get(_name(learner))
    if kind is None or given != f"{'.'.join(kind.__module__.split('.')[:2])}:{kind.__name__}":
        raise _refusal(given)
    known = inspect.signature(kind).parameters
    for key in learner.params:
        if key not in known:
            raise ConfigError(f"{_name(learner)} has no setting {key!r}; {nearest(key, known)}")
    return kind(**learner.params)


def _refusal(name: str) -> ConfigError:
    return ConfigError(
        f"Sklearn cannot average the state of {name!r}; {nearest(name.rpartition(':')[2], _KNOWN)}"
        f" (by name as 'sklearn.linear_model:SGDClassifier')"
    )


def _check_work(name: str, work: LocalWork) -> None:
    asked = [
        what
        for what, set_ in (
            ("a proximal term", work.proximal != 0),
            ("a linear term", work.linear is not None and bool(np.any(work.linear))),
            ("a number of steps", work.steps is not None),
            ("full batches", work.full_batch),
            ("a learning-rate factor", work.learning_rate != 1.0),
        )
        if set_
    ]
    if asked:
        raise ConfigError(
            f"the algorithm asks for {' and '.join(asked)}, which {name} of scikit-learn cannot honour;"
            f" use Linear, Softmax, MLP or Torch"
        )


def _classes(learner: Sklearn, example: Examples) -> int | None:
    if not sklearn.base.is_classifier(_made(learner)):
        return None
    if learner.classes is not None:
        return learner.classes
    labels = example.base[1]
    if labels.ndim != 1 or labels.dtype.kind not in "biu":
        raise DataError(
            f"{_name(learner)} needs whole class numbers of shape (n,) as targets, not {labels.dtype} {labels.shape}"
        )
    return max(int(labels.max(initial=0)) + 1, 2)


def _shape(learner: Sklearn, params: Params) -> tuple[int | None, int]:
    """Classes (None for a regression) and features of the model that these parameters are."""
    made = _made(learner)
    names = params.layout.names
    network = isinstance(made, _NETWORKS)
    if not names or names[0] != ("coefs_.0" if network else "coef_"):
        raise ConfigError(f"these parameters are not those of {_name(learner)}: {', '.join(names)}")
    first = params.layout.shapes[0]
    outputs, features = (params.layout.shapes[-1][0], first[0]) if network else (first[0], first[-1])
    if not sklearn.base.is_classifier(made):
        return None, features
    return (2 if outputs == 1 else outputs), features


def _read(name: str, data: Examples, features: int, classes: int | None) -> tuple[Array, Array]:
    x = data.x.reshape(len(data), -1) if len(data) else np.zeros((0, features))
    y = data.y
    if x.dtype.kind not in "biuf":
        raise DataError(f"{name} needs numbers as features but they are {x.dtype}; encode them as numbers first")
    if x.shape[1] != features:
        raise DataError(f"{name} was made for {features} features but the examples have {x.shape[1]}")
    if not np.isfinite(x).all():
        place = np.argwhere(~np.isfinite(x))[0].tolist()
        raise DataError(
            f"{name} found a NaN or an infinite value in feature {place[1]} of example {place[0]}; fill it first"
        )
    x = x.astype(np.float64, copy=False)
    if classes is None:
        if y.dtype.kind not in "biuf" or not np.isfinite(y).all():
            raise DataError(f"{name} needs finite numbers as targets; fill or leave out the others before training")
        return x, y
    if y.ndim != 1 or y.dtype.kind not in "biu":
        raise DataError(f"{name} needs whole class numbers of shape (n,) as targets, not {y.dtype} {y.shape}")
    if len(y) and (y.min() < 0 or y.max() >= classes):
        wrong = int(y.min() if y.min() < 0 else y.max())
        raise DataError(
            f"{name} found the label {wrong} but class numbers are from 0 to {classes - 1}; renumber the labels"
        )
    return x, y


def _labels(classes: int | None) -> dict[str, Array]:
    return {} if classes is None else {"classes": np.arange(classes)}


def _primed(made: Any, features: int, outputs: int, classes: int | None, random_state: int) -> Any:
    """A network with the weights that scikit-learn draws: a fit whose one step is too small to change them."""
    own = made.get_params(deep=False)
    made.set_params(learning_rate_init=1e-300, alpha=0.0, random_state=random_state, batch_size="auto")
    y = np.arange(classes) if classes is not None else np.zeros((2, outputs) if outputs > 1 else 2)
    made.partial_fit(np.zeros((len(y), features)), y, **_labels(classes))
    made.set_params(**own)
    # Without its optimizer the network makes a new one, over the weights it then has, at the next partial_fit.
    del made._optimizer
    made.t_, made._no_improvement_count, made.best_loss_ = 0, 0, np.inf
    return made


def _initial_network(made: Any, features: int, classes: int | None, example: Examples, rng: Key) -> Params:
    outputs = int(np.prod(example.base[1].shape[1:], dtype=np.int64))
    made = _primed(made, features, outputs, classes, seed(rng))
    tensors = {f"coefs_.{i}": weight for i, weight in enumerate(made.coefs_)}
    return Params.of(tensors | {f"intercepts_.{i}": b for i, b in enumerate(made.intercepts_)}, dtype="float64")


def _placed(made: Any, params: Params, classes: int | None) -> Any:
    """The estimator with the coefficients of ``params``, as if it had been fitted."""
    tensors = {name: tensor.astype(np.float64) for name, tensor in params.tensors().items()}
    if isinstance(made, _NETWORKS):
        first, last = params.layout.shapes[0][0], params.layout.shapes[-1][0]
        made = _primed(made, first, last, classes, 0)
        found = [made.coefs_, made.intercepts_]
        if [part.shape for group in found for part in group] != list(params.layout.shapes):
            raise ConfigError(f"these parameters are not those of {made}: their shapes are {params.layout.shapes}")
        made.coefs_ = [tensors[f"coefs_.{i}"] for i in range(len(made.coefs_))]
        made.intercepts_ = [tensors[f"intercepts_.{i}"] for i in range(len(made.intercepts_))]
        return made
    made.coef_, made.intercept_ = tensors["coef_"], tensors["intercept_"]
    made.n_features_in_ = made.coef_.shape[-1]
    if classes is not None:
        made.classes_ = np.arange(classes)
    if isinstance(made, _STEPPED):
        made.t_ = 1.0
    return made


def _partial(
    made: Any, params: Params, x: Array, y: Array, classes: int | None, epochs: int, rng: Key
) -> tuple[Any, int]:
    made = _placed(made, params, classes)
    size = 1
    if isinstance(made, _NETWORKS):
        size = min(200 if made.batch_size == "auto" else made.batch_size, len(x))
        made.set_params(batch_size=size)
    for epoch in range(epochs):
        made.set_params(random_state=seed(rng, epoch))
        made.partial_fit(x, y, **_labels(classes))
    return made, epochs * -(-len(x) // size)


def _solve(made: Any, params: Params, x: Array, y: Array, classes: int | None, rng: Key) -> Any:
    if isinstance(made, LogisticRegression):
        present = len(np.unique(y))
        if present != classes:
            raise DataError(
                f"LogisticRegression of scikit-learn needs each of the {classes} classes at every party and one party has"
                f" {present}; use SGDClassifier(loss='log_loss') or Softmax"
            )
        made = _placed(made, params, classes)
        made.set_params(warm_start=True, random_state=seed(rng))
    return made.fit(x, y)


def _coefficients(fitted: Any, layout: Layout) -> Array:
    if isinstance(fitted, _NETWORKS):
        return np.concatenate([np.ravel(part) for part in (*fitted.coefs_, *fitted.intercepts_)])
    intercept = np.broadcast_to(np.ravel(fitted.intercept_), layout.shapes[1])
    return np.concatenate([np.ravel(fitted.coef_), intercept])


def _measure(fitted: Any, x: Array, y: Array, classes: int | None) -> Metrics:
    predicted = fitted.predict(x)
    if classes is None:
        shaped = predicted.reshape(y.shape)
        error = metrics.mse(y, shaped)
        return {"loss": error, "mse": error, "mae": metrics.mae(y, shaped)}
    right = metrics.accuracy(y, predicted)
    sure = isinstance(fitted, LogisticRegression | MLPClassifier) or (
        isinstance(fitted, SGDClassifier) and fitted.loss in ("log_loss", "modified_huber")
    )
    return {"loss": metrics.cross_entropy(y, fitted.predict_proba(x)) if sure else 1.0 - right, "accuracy": right}
