"""What the five scripts share: data, networks, priors, the base model, training, evaluation, figures, runs."""
