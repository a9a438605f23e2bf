//! The experts of a layer: all their row panels are tasks of one region.

use ds4_kernels::{Activations, Backend, Buffer, Choice, Experts, Matrix};

use crate::Cpu;
use crate::operands::{ROWS, Rows};
use crate::product::{Tokens, check, rows_per_task, store};
use crate::shared::Shared;

/// One expert's choices, and their tokens.
struct Group<'a> {
    expert: usize,
    choices: Vec<usize>,
    tokens: Tokens<'a>,
}

/// `out[choice]` is the output of the expert that was chosen.
pub(crate) fn experts(
    cpu: &Cpu,
    experts: &Experts<'_>,
    choices: &[Choice],
    x: &Activations<'_>,
    out: &mut [f32],
) {
    check(&experts.gate, x);
    check(&experts.up, x);
    let n_embd = experts.down.rows() / experts.count;
    assert_eq!(
        out.len(),
        choices.len() * n_embd,
        "out is [choices][rows of down]"
    );
    assert!(
        x.tokens() > 0 && choices.len().is_multiple_of(x.tokens()),
        "choices are [tokens][used]"
    );
    let used = choices.len() / x.tokens();
    let chosen = by_expert(choices, experts.count);
    let inner = activated(
        cpu,
        experts,
        choices,
        &groups(cpu, &chosen, x, |choice| choice / used),
    );
    let inner = cpu.activations(&inner, experts.down.cols(), experts.form);
    check(&experts.down, &inner);
    lower(cpu, experts, &groups(cpu, &chosen, &inner, |choice| choice), out);
}

/// The choices of every expert, ascending.
fn by_expert(choices: &[Choice], count: usize) -> Vec<Vec<usize>> {
    let mut chosen = vec![Vec::new(); count];
    for (at, choice) in choices.iter().enumerate() {
        chosen[choice.expert].push(at);
    }
    chosen
}

/// The experts that were chosen at all; `token_of` a choice is its row of `x`.
fn groups<'a>(
    cpu: &Cpu,
    chosen: &[Vec<usize>],
    x: &'a Activations<'_>,
    token_of: impl Fn(usize) -> usize,
) -> Vec<Group<'a>> {
    let group = |(expert, choices): (usize, &Vec<usize>)| Group {
        expert,
        choices: choices.clone(),
        tokens: Tokens::of(&cpu.kernels, x, choices.iter().map(|choice| token_of(*choice))),
    };
    chosen
        .iter()
        .enumerate()
        .filter(|(_, choices)| !choices.is_empty())
        .map(group)
        .collect()
}

/// Gate, up and their activation, `[choices][n_ff]`.
fn activated<'a>(
    cpu: &'a Cpu,
    experts: &Experts<'_>,
    choices: &[Choice],
    groups: &[Group<'_>],
) -> Buffer<'a> {
    let n_ff = experts.gate.rows() / experts.count;
    let mut inner = cpu.buffers.take(choices.len() * n_ff);
    let shared = Shared::new(&mut inner);
    each_panel(cpu, &experts.gate, n_ff, groups, &|group, first| {
        let [gate, up, _] = experts.one(group.expert);
        let (gate, up) = (Rows::new(&gate, first, n_ff), Rows::new(&up, first, n_ff));
        let at = |i: usize| group.choices[i] * n_ff + first;
        group.tokens.times(&cpu.kernels, &gate, &mut |i, values| {
            // SAFETY: a panel's rows of a choice belong to one task.
            store(unsafe { shared.slice(at(i), gate.count()) }, values);
        });
        group.tokens.times(&cpu.kernels, &up, &mut |i, values| {
            // SAFETY: as above.
            let gated = unsafe { shared.slice(at(i), up.count()) };
            let weight = choices[group.choices[i]].weight;
            (cpu.ops.swiglu)(gated, &values[..up.count()], experts.clamp, weight);
        });
    });
    inner
}

/// Down, to the choices' rows of `out`.
fn lower(cpu: &Cpu, experts: &Experts<'_>, groups: &[Group<'_>], out: &mut [f32]) {
    let n_embd = experts.down.rows() / experts.count;
    let shared = Shared::new(out);
    each_panel(cpu, &experts.down, n_embd, groups, &|group, first| {
        let [_, _, down] = experts.one(group.expert);
        let down = Rows::new(&down, first, n_embd);
        group.tokens.times(&cpu.kernels, &down, &mut |i, values| {
            // SAFETY: a panel's rows of a choice belong to one task.
            let out = unsafe { shared.slice(group.choices[i] * n_embd + first, down.count()) };
            store(out, values);
        });
    });
}

/// Calls `work(group, first row)` for every panel of `rows` rows of every group, as tasks of one region.
fn each_panel(
    cpu: &Cpu,
    weights: &Matrix<'_>,
    rows: usize,
    groups: &[Group<'_>],
    work: &(dyn Fn(&Group<'_>, usize) + Sync),
) {
    let per_task = rows_per_task(weights, rows, cpu.threads());
    let tasks = rows.div_ceil(per_task);
    cpu.pool.run(groups.len() * tasks, &|task| {
        let first = task % tasks * per_task;
        let end = rows.min(first + per_task);
        (first..end)
            .step_by(ROWS)
            .for_each(|first| work(&groups[task / tasks], first));
    });
}
