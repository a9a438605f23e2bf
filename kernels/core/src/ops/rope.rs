//! Rotary positions on the last dimensions of a head, interleaved pairs.

/// One angle per pair and unit of position.
#[derive(Clone, Debug)]
pub struct Rope {
    theta: Vec<f32>,
}

/// `YaRN`'s stretch of low frequencies beyond the original context.
#[derive(Clone, Copy, Debug)]
pub struct Yarn {
    /// How much longer the context became.
    pub factor: f64,
    /// Rotations over the original context above which a pair keeps its frequency.
    pub beta_fast: f64,
    /// Rotations below which a pair is stretched in full.
    pub beta_slow: f64,
    /// Original context in tokens.
    pub original_context: f64,
}

/// Cosines and sines of one position, interleaved: those of a pair beside each other.
#[derive(Clone, Debug)]
pub struct Rotation {
    pairs: Vec<f32>,
}

#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)] // small indices; angles are f32 by the reference's definition
impl Rope {
    /// `theta_i = base^(-2i / n_rot)`, stretched where `yarn` is given. Computed in `f64`, kept in `f32`.
    #[must_use]
    pub fn new(base: f64, n_rot: usize, yarn: Option<Yarn>) -> Self {
        let n = n_rot as f64;
        let plain = |i: usize| libm::pow(base, -2.0 * i as f64 / n);
        let stretch = |i: usize, yarn: Yarn| {
            let dimension = |beta: f64| {
                let turns = yarn.original_context / (beta * 2.0 * std::f64::consts::PI);
                n * libm::log(turns) / (2.0 * libm::log(base))
            };
            let low = libm::floor(dimension(yarn.beta_fast)).max(0.0);
            let high = libm::ceil(dimension(yarn.beta_slow)).min(n - 1.0);
            // The reference avoids a division by zero with this width.
            let ramp = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
            plain(i) * ((1.0 - ramp) + ramp / yarn.factor)
        };
        let theta = (0..n_rot / 2).map(|i| yarn.map_or_else(|| plain(i), |yarn| stretch(i, yarn)) as f32);
        Self {
            theta: theta.collect(),
        }
    }

    /// The rotation of `position`. The angle is an `f32` product, as in the model's reference.
    #[must_use]
    pub fn at(&self, position: u64) -> Rotation {
        let angle = |theta: &f32| {
            let (sin, cos) = libm::sincos(f64::from(*theta * position as f32));
            [cos as f32, sin as f32]
        };
        Rotation {
            pairs: self.theta.iter().flat_map(angle).collect(),
        }
    }
}

impl Rotation {
    /// Cosines and sines, interleaved: those of a pair beside each other.
    #[must_use]
    pub fn pairs(&self) -> &[f32] {
        &self.pairs
    }

    /// Rotates the tail of one head.
    #[inline(always)]
    pub fn apply(&self, head: &mut [f32]) {
        self.turn(head, 1.0);
    }

    /// Undoes [`Rotation::apply`].
    #[inline(always)]
    pub fn apply_inverse(&self, head: &mut [f32]) {
        self.turn(head, -1.0);
    }

    #[inline(always)]
    fn turn(&self, head: &mut [f32], direction: f32) {
        let start = head.len() - self.pairs.len();
        for (pair, angle) in head[start..].chunks_exact_mut(2).zip(self.pairs.chunks_exact(2)) {
            let (cos, sin) = (angle[0], angle[1] * direction);
            let (x, y) = (pair[0], pair[1]);
            pair[0] = x.mul_add(cos, -(y * sin));
            pair[1] = x.mul_add(sin, y * cos);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inverse_undoes_and_only_the_tail_turns() {
        let rope = Rope::new(10_000.0, 4, None);
        let mut head = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        rope.at(7).apply(&mut head);
        assert_eq!(head[..2], [1.0, 2.0]);
        assert!((head[2] - 3.0).abs() > 0.1);
        rope.at(7).apply_inverse(&mut head);
        assert!(head.iter().zip(1..).all(|(x, i)| (x - i as f32).abs() < 1e-5));
    }

    #[test]
    fn yarn_keeps_the_fastest_pair_and_divides_the_slowest() {
        let yarn = Yarn {
            factor: 16.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_context: 65_536.0,
        };
        let (plain, stretched) = (
            Rope::new(160_000.0, 64, None),
            Rope::new(160_000.0, 64, Some(yarn)),
        );
        assert_eq!(plain.theta[0], stretched.theta[0]);
        let last = plain.theta[31] / stretched.theta[31];
        assert!(last > 1.0 && last <= 16.0, "{last}");
    }
}
