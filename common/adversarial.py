"""Two players in one loss: a function that hides a network from a gradient, and the losses of both players.

A discriminator tells two distributions apart. Its logit is positive where it takes its input for the first of them. All
losses are means over the batch, in nats.
"""

from keras import ops


def frozen(network):
    """`network` as a function whose weights receive no gradient; its inputs still do.

    This selects a player's gradient inside one scalar loss: the encoder's term goes through
    `frozen(discriminator)`, the discriminator's term through `stop_gradient(code)`.
    """

    def call(inputs):
        outputs, _ = network.stateless_call(
            [ops.stop_gradient(variable.value) for variable in network.trainable_variables],
            [variable.value for variable in network.non_trainable_variables],
            inputs,
        )
        return outputs

    return call


def discriminator_loss(first_logits, second_logits):
    """Logistic loss -E[log sigma(T)] under the first distribution - E[log(1 - sigma(T))] under the second.

    The loss is 2 log 2 = 1.386 nats where the discriminator sees no difference. The best discriminator returns the log
    ratio of the densities. The first distribution is the prior in the AAE paper (section 2), q(z|x) in the AVB paper
    (eq. 3.3).
    """
    return ops.mean(ops.softplus(-first_logits)) + ops.mean(ops.softplus(second_logits))


def generator_loss(logits):
    """Non-saturating generator loss -E[log sigma(D)]: log 2 = 0.693 nats where the discriminator is fooled.

    Goodfellow et al., arXiv 1406.2661, section 3: the gradient does not vanish where the discriminator wins.
    """
    return ops.mean(ops.softplus(-logits))
