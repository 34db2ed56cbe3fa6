//! What people see: progress, tables, lines.

use crate::{
    compare::Comparison,
    gpu::AdapterFacts,
    inspect::Inspection,
    quantize::Prepared,
    report::{Report, bytes},
    reproduce::Reproduction,
    validate::Validation,
    verify::Verification,
};
use comfy_table::{Cell, CellAlignment, Table, presets};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    cell::Cell as Shared,
    io::IsTerminal,
    sync::LazyLock,
    time::{Duration, Instant},
};

/// The bars on the screen, which lines of the log must not tear.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Takes bars off the screen while something else is written.
pub fn beside_bars(write: impl FnOnce()) {
    BARS.suspend(write);
}

/// A bar with rate and time left on a terminal, a line from time to time elsewhere.
pub struct Progress {
    bar: ProgressBar,
    lines: bool,
    done: Shared<u64>,
    total: u64,
    start: Instant,
    last: Shared<Instant>,
}

/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

impl Progress {
    pub fn new(total: u64, quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = if quiet || !terminal {
            ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden())
        } else {
            BARS.add(ProgressBar::new(total))
        };
        let style = "{bar:32} {percent:>3} %  {decimal_bytes} of {decimal_total_bytes}  {decimal_bytes_per_sec}  {eta} left";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        let start = Instant::now();
        Progress {
            bar,
            lines: !quiet && !terminal,
            done: Shared::new(0),
            total,
            start,
            last: Shared::new(start),
        }
    }

    pub fn advance(&self, more: u64) {
        self.bar.inc(more);
        self.done.set(self.done.get() + more);
        if self.lines && self.last.get().elapsed() >= LINE_EVERY {
            self.last.set(Instant::now());
            let seconds = self.start.elapsed().as_secs_f64();
            let rate = self.done.get() as f64 / seconds;
            let left = self.total.saturating_sub(self.done.get()) as f64 / rate.max(1.0);
            complain!(
                "{:>3.0} %  {} of {}  {}/s  {left:.0} s left",
                100.0 * self.done.get() as f64 / self.total.max(1) as f64,
                bytes(self.done.get()),
                bytes(self.total),
                bytes(rate as u64)
            );
        }
    }

    pub fn finish(&self) {
        // a bar that stopped in the middle would claim that no time is left
        self.bar.finish_and_clear();
    }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.to_vec());
    table
}

/// A cell; line breaks in names must not look like rows.
fn cell(text: impl ToString) -> Cell {
    Cell::new(text.to_string().replace('\n', "\\n").replace('\r', "\\r"))
}

fn right(text: impl ToString) -> Cell {
    Cell::new(text.to_string()).set_alignment(CellAlignment::Right)
}

fn shape(dims: &[usize]) -> String {
    dims.iter().map(usize::to_string).collect::<Vec<_>>().join("×")
}

fn ratio(before: u64, after: u64) -> String {
    format!("{:.2}×", before as f64 / after.max(1) as f64)
}

fn decibels(db: Option<f64>) -> String {
    match db {
        None => String::new(),
        Some(db) if db >= 999.0 => "exact".into(),
        Some(db) if db <= -999.0 || db.is_nan() => "lost".into(),
        Some(db) => format!("{db:.2} dB"),
    }
}

pub fn plan(prepared: &Prepared) {
    let plan = &prepared.plan;
    let mut rows = table(&["tensor", "dtype", "shape", "what happens", "before", "after"]);
    for row in &plan.rows {
        let action = match &row.reason {
            Some(reason) => format!("{}: {reason}", row.action),
            None => row.action.clone(),
        };
        rows.add_row(vec![
            cell(&row.name),
            cell(&row.dtype),
            cell(shape(&row.shape)),
            cell(action),
            right(bytes(row.before)),
            right(bytes(row.after)),
        ]);
    }
    say!("{}", rows.trim_fmt());
    for (path, why) in prepared.checkpoint.left_out() {
        say!("left out: {}: {why}", path.display());
    }
    for note in &plan.notes {
        say!("note: {note}");
    }
    say!(
        "{} tensors, {} → {} ({}), {} file{}, to {}",
        plan.rows.len(),
        bytes(plan.bytes_before()),
        bytes(plan.bytes_after()),
        ratio(plan.bytes_before(), plan.bytes_after()),
        plan.files.len(),
        if plan.files.len() == 1 { "" } else { "s" },
        prepared.destination.path().display()
    );
}

/// Layers that are listed by name in the closing table; --report has all.
const WORST: usize = 5;

pub fn report(report: &Report) {
    for (path, why) in &report.left_out {
        complain!("left out: {path}: {why}");
    }
    let worst = report.worst();
    if !worst.is_empty() {
        let title = if worst.len() > WORST { "layers with the lowest SQNR" } else { "layer" };
        let mut rows = table(&[title, "scheme", "SQNR", "peak/RMS", "before", "after"]);
        for entry in worst.iter().take(WORST) {
            rows.add_row(vec![
                cell(&entry.row.name),
                cell(&entry.row.action),
                right(decibels(entry.sqnr_db)),
                right(format!("{:.1}", entry.peak_to_rms.unwrap_or(0.0))),
                right(bytes(entry.row.before)),
                right(bytes(entry.row.after)),
            ]);
        }
        complain!("{}", rows.trim_fmt());
    }
    kept(report);
    for line in report.verified.iter().flat_map(checked) {
        complain!("verified: {line}");
    }
    for warning in &report.warnings {
        complain!("warning: {warning}");
    }
    let changed = report.tensors.iter().filter(|e| e.row.action != "kept").count();
    let sqnr = report.sqnr_db.map_or(String::new(), |db| format!(", SQNR {}", decibels(Some(db))));
    complain!(
        "{changed} of {} tensors changed, {} → {} ({}){sqnr}, {:.1} s",
        report.tensors.len(),
        bytes(report.bytes_before),
        bytes(report.bytes_after),
        ratio(report.bytes_before, report.bytes_after),
        report.seconds
    );
}

/// What was left alone, by reason.
fn kept(report: &Report) {
    let mut reasons: Vec<(&str, Vec<&str>, u64)> = Vec::new();
    for entry in report.tensors.iter().filter(|e| e.row.action == "kept") {
        let reason = entry.row.reason.as_deref().unwrap_or("kept");
        match reasons.iter_mut().find(|(r, ..)| *r == reason) {
            Some((_, names, size)) => {
                names.push(&entry.row.name);
                *size += entry.row.before;
            }
            None => reasons.push((reason, vec![&entry.row.name], entry.row.before)),
        }
    }
    for (reason, names, size) in reasons {
        let more = if names.len() > 2 { format!(" and {} more", names.len() - 2) } else { String::new() };
        let names = names.iter().take(2).copied().collect::<Vec<_>>().join(", ");
        complain!("kept: {reason}: {names}{more} ({})", bytes(size));
    }
}

pub fn inspection(inspection: &Inspection) {
    let mut rows = table(&["tensor", "kind", "shape", "size"]);
    for item in &inspection.items {
        rows.add_row(vec![
            cell(&item.name),
            cell(&item.kind),
            cell(shape(&item.shape)),
            right(bytes(item.bytes)),
        ]);
    }
    say!("{}\n", rows.trim_fmt());
    let mut kinds = table(&["kind", "tensors", "size"]);
    for (kind, (count, size)) in &inspection.kinds {
        kinds.add_row(vec![cell(kind), right(count), right(bytes(*size))]);
    }
    say!("{}", kinds.trim_fmt());
    if let Some(why) = &inspection.unreadable {
        say!("layers cannot be made out: {why}");
    }
    for note in &inspection.notes {
        say!("note: {note}");
    }
    say!(
        "{}: {} parameters, {} in {} file{}",
        inspection.model,
        inspection.parameters,
        bytes(inspection.bytes),
        inspection.files,
        if inspection.files == 1 { "" } else { "s" }
    );
}

pub fn comparison(comparison: &Comparison) {
    let mut rows = table(&["tensor", "first", "second", "SQNR", "largest error", "size", ""]);
    for d in &comparison.differences {
        rows.add_row(vec![
            cell(&d.name),
            cell(&d.kinds[0]),
            cell(&d.kinds[1]),
            right(decibels(Some(d.sqnr_db))),
            right(format!("{:.3e}", d.max_error)),
            right(bytes(d.bytes[0])),
            right(format!("→ {}", bytes(d.bytes[1]))),
        ]);
    }
    say!("{}", rows.trim_fmt());
    for note in &comparison.notes {
        say!("note: {note}");
    }
    for unlike in &comparison.unlike {
        say!("not comparable: {unlike}");
    }
    for (model, only) in comparison.models.iter().zip(&comparison.only) {
        for name in only {
            say!("only in {model}: {name}");
        }
    }
    say!(
        "SQNR {}, largest error {:.3e}, {} → {} ({})",
        decibels(Some(comparison.sqnr_db)),
        comparison.max_error,
        bytes(comparison.bytes[0]),
        bytes(comparison.bytes[1]),
        ratio(comparison.bytes[0], comparison.bytes[1])
    );
}

pub fn validation(validation: &Validation) {
    for note in &validation.notes {
        say!("note: {note}");
    }
    let config = if validation.config { ", config.json" } else { "" };
    let looked = format!(
        "{}: {} quantized layers, {} other tensors{config}",
        validation.model, validation.layers, validation.tensors
    );
    match validation.problems.len() {
        0 => say!("{looked}: whole, finite, loadable"),
        1 => say!("{looked}: 1 problem"),
        n => say!("{looked}: {n} problems"),
    }
}

/// What was checked, a line a kind.
fn checked(found: &Verification) -> Vec<String> {
    let plural = |n: u64, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let mut lines = Vec::new();
    if found.layers > 0 {
        let clipped = 100.0 * found.clipped as f64 / found.weights.max(1) as f64;
        let (layers, weights, worst) = (plural(found.layers, "quantized layer"), found.weights, found.worst);
        lines.push(format!(
            "{layers}, {weights} weights: at most {worst:.4} steps from what they were, {clipped:.3} % clipped"
        ));
    }
    let (casts, copies) = (plural(found.casts, "tensor"), plural(found.copies, "tensor"));
    let saturated = match found.saturated {
        0 => String::new(),
        n => format!(", {n} values clamped"),
    };
    lines.push(format!("{casts} cast to the nearest{saturated}, {copies} kept, byte for byte"));
    if !found.unchecked.is_empty() {
        lines.push(format!("not in the input, and so not checked: {}", found.unchecked.join(", ")));
    }
    if found.files > 0 {
        lines.push(format!("{} compared by SHA-256 with the report", plural(found.files, "file")));
    }
    lines
}

pub fn verification(found: &Verification) {
    for line in checked(found) {
        say!("{line}");
    }
    match found.problems.len() {
        0 => say!("{}: verified", found.output.display()),
        1 => say!("{}: 1 problem", found.output.display()),
        n => say!("{}: {n} problems", found.output.display()),
    }
}

pub fn reproduction(found: &Reproduction) {
    if found.differences.is_empty() {
        say!("same bytes: {} files", found.same);
    }
}

pub fn devices(rows: &[(AdapterFacts, Option<String>)], auto: &str) {
    if rows.is_empty() {
        say!("no GPU and no driver found (Vulkan, Metal or DX12)");
    } else {
        let mut list =
            table(&["device", "adapter", "kind", "API", "driver", "binding", "subgroups", "check"]);
        for (facts, outcome) in rows {
            let subgroups = match facts.subgroups {
                [0, 0] => "none".to_owned(),
                [low, high] if low == high => low.to_string(),
                [low, high] => format!("{low} to {high}"),
            };
            list.add_row(vec![
                cell(format!("gpu:{}", facts.number)),
                cell(&facts.name),
                cell(facts.kind),
                cell(&facts.api),
                cell(&facts.driver),
                right(bytes(facts.max_binding_bytes)),
                right(subgroups),
                cell(outcome.as_deref().unwrap_or("not run (--check)")),
            ]);
        }
        say!("{}", list.trim_fmt());
    }
    say!("auto takes: {auto}");
}
