//! The distributions as a picture: for each measure the time that a share of all does not exceed.

use super::report::{Report, Times};

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 180.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 30.0;

/// One panel for each measure.
pub(super) fn svg(report: &Report) -> String {
    let panels = report
        .measures
        .iter()
        .enumerate()
        .map(|(i, (_, name, times))| panel(name, times, i as f64 * (HEIGHT + 60.0)));
    let height = report.measures.len() as f64 * (HEIGHT + 60.0) + 10.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{}</svg>\n",
        WIDTH + LEFT + 20.0,
        panels.collect::<String>()
    )
}

fn panel(name: &str, times: &Times, top: f64) -> String {
    let most = times.percentile(100.0);
    if !most.is_finite() {
        return String::new();
    }
    let (top, bottom) = (top + TOP, top + TOP + HEIGHT);
    let at = |percent: f64| {
        (
            LEFT + percent / 100.0 * WIDTH,
            bottom - times.percentile(percent) / most.max(1e-9) * HEIGHT,
        )
    };
    let points: Vec<String> = (1..=200)
        .map(|i| at(f64::from(i) / 2.0))
        .map(|(x, y)| format!("{x:.1},{y:.1}"))
        .collect();
    let mut text = format!(
        "<text x=\"{LEFT}\" y=\"{:.1}\" font-weight=\"bold\">{name} (ms by percentile)</text>\n",
        top - 10.0
    );
    text += &format!(
        "<path d=\"M{LEFT} {top:.1}V{bottom:.1}H{}\" fill=\"none\" stroke=\"#999\"/>\n",
        LEFT + WIDTH
    );
    for percent in [50.0, 90.0, 99.0] {
        let (x, y) = at(percent);
        text += &format!(
            "<path d=\"M{x:.1} {bottom:.1}V{y:.1}\" stroke=\"#ccc\"/><text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">p{percent}: {:.1}</text>\n",
            bottom + 16.0,
            times.percentile(percent)
        );
    }
    text += &format!(
        "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{most:.1}</text>\n",
        LEFT - 6.0,
        top + 4.0
    );
    text + &format!(
        "<polyline points=\"{}\" fill=\"none\" stroke=\"#3b7dd8\" stroke-width=\"2\"/>\n",
        points.join(" ")
    )
}
