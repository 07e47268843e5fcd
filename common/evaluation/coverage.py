"""Does the code cover its prior? The share of the prior in holes of the code, and the share with a code near."""

from common.evaluation.latent import precise
from common.numbers import Absent, Estimate

import numpy as np
from scipy.special import logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.neighbors import NearestNeighbors
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

FEWEST = 50  # training codes: each of two classifiers is trained on half of them
EPOCHS = (1, 2, 4, 7, 10, 14, 20, 28, 40)  # of the classifiers' training, from which the best is taken
FEWEST_COVERED = 20  # codes and prior samples
GROUPS, SPARE = 10, 20  # groups that are left out in turn, and neighbours beyond those that are counted
TOO_FEW = "there are too few codes"
THRESHOLD = 0.5  # a hole is where q(z) / p(z) is lower


def hole_mass(training_codes, training_prior, codes, prior_samples, seed: int = 0) -> Estimate | Absent:
    """Share of the prior that lies in holes, where the density of codes is less than half of the prior's.

    P[q(z) < p(z) / 2] over z ~ p(z), where q(z) is the aggregated posterior: 0 if the codes fill their prior. A missing
    tenth of the prior gives 0.1. Two classifiers estimate log q(z) / p(z), each from one half of `training_codes` and
    of `training_prior`, both (m, latent_dim). Their mean ratio is taken at `prior_samples`, (n, latent_dim), which no
    classifier has seen.

    The ratios are too wide, by the noise of the training. Once they are calibrated at `prior_samples` and `codes`,
    (n, latent_dim) of test images, they are too narrow, by what the classifiers do not see. The result is the mean of
    both shares. Its standard error contains: half of their difference; how much the share changed from one classifier
    to two, as in a learning curve; the difference of the two classifiers; and the errors of calibration and counting.

    The error does not know of holes that no classifier finds. So the result can be too low where holes are small, or
    many and narrow, in many dimensions. With 20,000 training codes, a missing sector of a tenth was found in 2-D and
    8-D, but in 32-D the result was 0.00. The mean of the Gaussians q(z|x) of some images is no substitute for q(z): in
    the plane, those of 5,000 images and a Gaussian AAE left gaps of 0.97, where the classifiers find 0.01. `Absent` if
    there are fewer than 50 training codes, or 2 test codes.
    """
    if len(training_codes) < FEWEST or min(len(codes), len(prior_samples)) < 2:
        return Absent(TOO_FEW)
    training, test = (training_codes, training_prior), (codes, prior_samples)
    scores = log_ratios(*(tuple(map(precise, pair)) for pair in (training, test)), seed)
    raw, calibrated, calibration_error = shares_below(*np.mean(scores, axis=0))
    value = 0.5 * (raw + calibrated)
    first, second = (0.5 * sum(shares_below(*each)[:2]) for each in scores)
    counting = counting_error(value, len(prior_samples))
    training = value - 0.5 * (first + second), 0.5 * (first - second)
    return Estimate(
        float(value), float(np.linalg.norm((0.5 * (raw - calibrated), *training, calibration_error, counting)))
    )


def counting_error(share: float, count: int) -> float:
    """The standard error of a share of `count` independent hits, as if there were one hit and one miss more.

    So it is above 0 for a share of 0 or 1.
    """
    hits = (share * count + 1.0) / (count + 2.0)
    return (hits * (1.0 - hits) / (count + 2.0)) ** 0.5


def log_ratios(training, test, seed: int) -> np.ndarray:
    """Estimates of log q(z) / p(z) by two classifiers: (2 classifiers, codes or prior samples, n).

    `training` and `test` are pairs of codes and prior samples. The number of epochs is the one of EPOCHS after which
    the calibrated mean of both classifiers has the lowest cross-entropy on `test`.
    """
    count, most = min(map(len, training)) // 2, min(map(len, test))
    scaler, labels, best = StandardScaler().fit(np.concatenate(training)), np.repeat([1, 0], count), np.inf
    inputs = scaler.transform(np.concatenate([array[:most] for array in test]))
    halves = [scaler.transform(np.concatenate([array[half::2][:count] for array in training])) for half in range(2)]
    batch, states = int(np.clip(count // 10, 10, 200)), [(2 * seed + half) % 2**32 for half in range(2)]
    networks = [
        MLPClassifier((64, 64), batch_size=batch, random_state=np.random.RandomState(state)) for state in states
    ]
    for epoch in range(1, max(EPOCHS) + 1):
        for network, half in zip(networks, halves, strict=True):
            network.partial_fit(half, labels, classes=[0, 1])
        if epoch in EPOCHS:
            shares = np.array([network.predict_proba(inputs)[:, 1] for network in networks], "float64")
            found = logit(np.clip(shares, 1e-7, 1.0 - 1e-7)).reshape(2, 2, most)
            loss = log_loss(np.repeat([1, 0], most), calibration(*found.mean(axis=0))[1])
            if loss < best:
                best, scores = loss, found
    return scores


def calibration(of_codes: np.ndarray, of_prior: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated log ratios and probabilities of codes: two (2 n,), first at codes, then at prior samples.

    It is a logistic regression of the label on the log ratio (Platt scaling). The arguments are two (n,).
    """
    scores, labels = np.concatenate([of_codes, of_prior])[:, None], np.repeat([1, 0], [len(of_codes), len(of_prior)])
    model = LogisticRegression().fit(scores, labels)
    return model.decision_function(scores), model.predict_proba(scores)[:, 1]


def shares_below(of_codes: np.ndarray, of_prior: np.ndarray) -> tuple[float, float, float]:
    """Share of prior samples with a ratio below THRESHOLD, raw and calibrated, and the error of the calibration.

    The arguments are log ratios at codes and at prior samples, two (n,). The error is that of the two parameters of
    the calibration, from the information matrix.
    """
    ratios, probabilities = calibration(of_codes, of_prior)
    scores = np.concatenate([of_codes, of_prior])
    design = np.stack([np.ones_like(scores), scores], axis=1)
    covariance = np.linalg.pinv((design * (probabilities * (1.0 - probabilities))[:, None]).T @ design)
    at_prior, edge = slice(len(of_codes), None), np.log(THRESHOLD)
    errors = np.einsum("ni,ij,nj->n", design[at_prior], covariance, design[at_prior]).clip(0.0) ** 0.5
    ratios = ratios[at_prior]
    error = 0.5 * (np.mean(ratios - errors < edge) - np.mean(ratios + errors < edge))
    return float(np.mean(of_prior < edge)), float(np.mean(ratios < edge)), float(error)


def coverage(codes: np.ndarray, prior_samples: np.ndarray, neighbours: int = 5) -> Estimate | Absent:
    """Share of prior samples with a code nearer than their `neighbours`-th nearest prior sample.

    Naeem et al., arXiv 2002.09797, eq. 4: both are (n, latent_dim), and prior samples are the real ones. For a perfect
    match, `matched_coverage` is the expected value: 0.969 for 5 neighbours. In many dimensions the neighbours are as
    far away as the prior is wide, so that holes are not seen.

    Balls around prior samples overlap. So the standard error comes from leaving out tenths of the data (jackknife). It
    covers the truth, and is up to twice too large. It is at least that of independent hits, one more hit and one more
    miss among them. `Absent` if there are fewer than 20 of each.
    """
    if min(len(codes), len(prior_samples)) < FEWEST_COVERED:
        return Absent(TOO_FEW)
    codes, prior_samples = precise(codes), precise(prior_samples)
    near = NearestNeighbors(n_neighbors=min(neighbours + SPARE, len(prior_samples) - 1)).fit(prior_samples).kneighbors()
    nearest = NearestNeighbors(n_neighbors=min(1 + SPARE, len(codes))).fit(codes).kneighbors(prior_samples)
    without = [share_covered(near, nearest, neighbours, group) for group in range(GROUPS)]
    value, error = share_covered(near, nearest, neighbours), ((GROUPS - 1) * np.var(without)) ** 0.5
    return Estimate(value, float(max(error, counting_error(value, len(prior_samples)))))


def share_covered(near, nearest, neighbours: int, left_out: int | None = None) -> float:
    """The number in `coverage`, without its error; perhaps without each prior sample and code of one group.

    `near` are distances and indices of the prior samples next to each prior sample, (n, m) each, without itself, from
    near to far, and `nearest` those of codes. Row i belongs to the group i % GROUPS. A group has a tenth of all rows,
    so that SPARE more neighbours than are counted suffice without it.
    """
    edges = []
    for (distances, indices), number in ((near, neighbours), (nearest, 1)):
        kept = indices % GROUPS != left_out
        edges.append(distances[np.arange(len(distances)), np.argmax(kept.cumsum(axis=1) == number, axis=1)])
    counted = np.arange(len(edges[0])) % GROUPS != left_out
    return float(np.mean(edges[1][counted] <= edges[0][counted]))


def matched_coverage(count: int, neighbours: int = 5) -> float:
    """What `coverage` is on average if codes and prior samples, `count` of each, are from one distribution.

    Naeem et al., Lemma 2. It is near 1 - 2^-neighbours.
    """
    ranks = np.arange(neighbours)
    return float(1.0 - np.prod((count - 1 - ranks) / (2 * count - 1 - ranks)))
