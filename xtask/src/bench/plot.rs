//! Line charts as SVG that can be read on light and on dark ground, without a plotting library: two axes, a few lines.

use std::fmt::Write;

/// A line of points `(x, y)` in ascending `x`.
pub struct Curve {
    /// What it shows.
    pub name: String,
    /// Its points.
    pub points: Vec<(f64, f64)>,
}

/// One chart; `x` on a logarithmic axis, `y` from zero.
pub struct Chart {
    /// Above it.
    pub title: String,
    /// Under the horizontal axis.
    pub x: String,
    /// Its lines, at most four.
    pub curves: Vec<Curve>,
}

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 320.0;
/// Left, top, right and bottom of the plotted area.
const AREA: [f64; 4] = [56.0, 44.0, 440.0, 270.0];

/// Charts side by side.
#[must_use]
pub fn svg(charts: &[Chart]) -> String {
    #[allow(clippy::cast_precision_loss)] // a few charts
    let width = WIDTH * charts.len() as f64;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {HEIGHT}\" font-family=\"Inter, Segoe UI, Helvetica, Arial, sans-serif\" font-size=\"12\">\n{STYLE}"
    );
    for (number, chart) in charts.iter().enumerate() {
        #[allow(clippy::cast_precision_loss)] // a few charts
        let left = WIDTH * number as f64;
        put(
            &mut text,
            format_args!("<g transform=\"translate({left} 0)\">\n{}</g>", chart.svg()),
        );
    }
    text + "</svg>\n"
}

const STYLE: &str = "<style>\n\
 :root { --ink: #1b1f24; --faint: #d5dae0; --c0: #0b62c4; --c1: #c2410c; --c2: #15803d; --c3: #7c3aed }\n\
 @media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --faint: #3a424c; --c0: #6cb2ff; --c1: #ff9b66; --c2: #6fd08c; --c3: #c4a3ff } }\n\
 text { fill: var(--ink) } .grid { stroke: var(--faint) } .end { text-anchor: end } .mid { text-anchor: middle } .title { font-size: 14px; font-weight: 600 }\n\
 polyline { fill: none; stroke-width: 2 } .s0 { stroke: var(--c0) } .s1 { stroke: var(--c1) } .s2 { stroke: var(--c2) } .s3 { stroke: var(--c3) }\n\
 .f0 { fill: var(--c0) } .f1 { fill: var(--c1) } .f2 { fill: var(--c2) } .f3 { fill: var(--c3) }\n</style>\n";

impl Chart {
    fn svg(&self) -> String {
        let [left, top, right, bottom] = AREA;
        let points = || self.curves.iter().flat_map(|curve| &curve.points);
        let (x_low, x_high) = points().fold((f64::MAX, f64::MIN), |(low, high), (x, _)| {
            (low.min(*x), high.max(*x))
        });
        let y_high = nice(points().fold(0.0, |high, (_, y)| y.max(high)));
        let span = (x_high / x_low).log2().max(1e-9);
        let place = |x: f64, y: f64| {
            (
                left + (x / x_low).log2() / span * (right - left),
                bottom - y / y_high * (bottom - top),
            )
        };
        let mut text = String::new();
        put(
            &mut text,
            format_args!(
                "<text class=\"title\" x=\"{left}\" y=\"20\">{}</text>",
                self.title
            ),
        );
        for step in 0..=4 {
            let value = y_high * f64::from(step) / 4.0;
            let (_, y) = place(x_low, value);
            put(
                &mut text,
                format_args!(
                    "<line class=\"grid\" x1=\"{left}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>"
                ),
            );
            put(
                &mut text,
                format_args!(
                    "<text class=\"end\" x=\"{}\" y=\"{:.1}\">{}</text>",
                    left - 6.0,
                    y + 4.0,
                    short(value)
                ),
            );
        }
        for x in marks(x_low, x_high) {
            let (at, _) = place(x, 0.0);
            put(
                &mut text,
                format_args!(
                    "<text class=\"mid\" x=\"{at:.1}\" y=\"{}\">{}</text>",
                    bottom + 18.0,
                    tokens(x)
                ),
            );
        }
        put(
            &mut text,
            format_args!(
                "<text class=\"mid\" x=\"{}\" y=\"{}\">{}</text>",
                f64::midpoint(left, right),
                bottom + 38.0,
                self.x
            ),
        );
        for (number, curve) in self.curves.iter().enumerate() {
            self.curve(&mut text, number, curve, &place);
        }
        text
    }

    fn curve(&self, text: &mut String, number: usize, curve: &Curve, place: &dyn Fn(f64, f64) -> (f64, f64)) {
        let placed: Vec<_> = curve.points.iter().map(|(x, y)| place(*x, *y)).collect();
        let line: Vec<_> = placed.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        put(
            text,
            format_args!("<polyline class=\"s{number}\" points=\"{}\"/>", line.join(" ")),
        );
        // Dots where there are few points; a dense line needs none.
        for (x, y) in placed.iter().filter(|_| placed.len() <= 12) {
            put(
                text,
                format_args!("<circle class=\"f{number}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>"),
            );
        }
        #[allow(clippy::cast_precision_loss)] // at most four
        let x = AREA[0] + 190.0 * number as f64;
        put(
            text,
            format_args!("<rect class=\"f{number}\" x=\"{x}\" y=\"30\" width=\"14\" height=\"3\"/>"),
        );
        put(
            text,
            format_args!("<text x=\"{}\" y=\"35\">{}</text>", x + 20.0, curve.name),
        );
    }
}

/// The first of 1, 2, 4, 6, 8, 10 times a power of ten that is not below `value`.
fn nice(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let ten = 10_f64.powf(value.log10().floor());
    let step = [1.0, 2.0, 4.0, 6.0, 8.0, 10.0]
        .into_iter()
        .find(|step| step * ten >= value);
    step.unwrap_or(10.0) * ten
}

/// Powers of two between two numbers, at most about ten.
fn marks(low: f64, high: f64) -> impl Iterator<Item = f64> {
    let (first, last) = (low.log2().ceil(), high.log2().floor());
    let step = ((last - first) / 8.0).ceil().max(1.0);
    (0..)
        .map(move |i| first + step * f64::from(i))
        .take_while(move |power| *power <= last)
        .map(f64::exp2)
}

fn tokens(count: f64) -> String {
    if count >= 1024.0 {
        format!("{}k", short(count / 1024.0))
    } else {
        short(count)
    }
}

fn short(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn put(text: &mut String, what: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_on_round_numbers_and_are_marked_at_powers_of_two() {
        assert_eq!(
            (nice(3.1), nice(0.07), nice(10.0), nice(0.0)),
            (4.0, 0.08, 10.0, 1.0)
        );
        assert_eq!(
            marks(2000.0, 32768.0).collect::<Vec<_>>(),
            [2048.0, 4096.0, 8192.0, 16384.0, 32768.0]
        );
        assert_eq!(
            (tokens(32768.0), tokens(512.0), short(0.25)),
            ("32k".into(), "512".into(), "0.25".into())
        );
    }

    #[test]
    fn a_chart_has_a_line_per_curve_within_its_area() {
        let curve = |name: &str, points: &[(f64, f64)]| Curve {
            name: name.into(),
            points: points.to_vec(),
        };
        let curves = vec![
            curve("a", &[(2048.0, 1.0), (8192.0, 4.0)]),
            curve("b", &[(4096.0, 2.0)]),
        ];
        let text = svg(&[Chart {
            title: "cost".into(),
            x: "depth".into(),
            curves,
        }]);
        assert_eq!(text.matches("<polyline").count(), 2);
        assert!(text.contains("points=\"56.0,213.5 440.0,44.0\""), "{text}");
        assert!(text.contains("prefers-color-scheme: dark"));
    }
}
