//! Rows, what they are held against, and how they are shown.

use serde_json::{Value, json};
use std::{io::IsTerminal, process::Command, time::Instant};

/// One measurement: bytes of bf16 weights that were gone through (0 where only time counts), and seconds.
#[derive(Clone, Copy)]
pub struct Sample {
    pub bytes: f64,
    pub seconds: f64,
}

impl Sample {
    /// GB/s, or milliseconds where no bytes were counted.
    fn value(&self) -> f64 {
        if self.bytes > 0.0 { self.bytes / self.seconds / 1e9 } else { self.seconds * 1e3 }
    }
}

/// Measures work on so many bytes of weights.
pub fn timed(bytes: usize, work: impl FnOnce()) -> Sample {
    let start = Instant::now();
    work();
    Sample { bytes: bytes as f64, seconds: start.elapsed().as_secs_f64() }
}

/// What a row is held against.
pub struct Against {
    /// Another row of the table.
    pub row: &'static str,
    pub by: By,
    /// What the ratio is to be, if there is a target.
    pub target: Option<f64>,
}

#[derive(Clone, Copy, PartialEq)]
pub enum By {
    /// Rate over the other's rate; targets are lower bounds.
    Rate,
    /// Time for a byte over the other's time; targets are upper bounds.
    Time,
}

/// Something that is measured once a round.
pub struct Row<'a> {
    pub name: String,
    pub against: Option<Against>,
    pub measure: Box<dyn FnMut() -> Sample + 'a>,
}

impl<'a> Row<'a> {
    pub fn new(name: impl Into<String>, measure: impl FnMut() -> Sample + 'a) -> Self {
        Row { name: name.into(), against: None, measure: Box::new(measure) }
    }

    /// Shows the rate as a part of another row's, which should be at least `target`.
    pub fn rate_of(self, row: &'static str, target: impl Into<Option<f64>>) -> Self {
        Row { against: Some(Against { row, by: By::Rate, target: target.into() }), ..self }
    }

    /// Shows the time for a byte as a multiple of another row's, which should be at most `target`.
    pub fn time_of(self, row: &'static str, target: impl Into<Option<f64>>) -> Self {
        Row { against: Some(Against { row, by: By::Time, target: target.into() }), ..self }
    }
}

/// A row's figures, in its unit.
struct Figures {
    median: f64,
    least: f64,
    most: f64,
    unit: &'static str,
    ratio: Option<f64>,
}

fn median(mut list: Vec<f64>) -> f64 {
    list.sort_by(f64::total_cmp);
    let middle = list.len() / 2;
    if list.len().is_multiple_of(2) { (list[middle - 1] + list[middle]) / 2.0 } else { list[middle] }
}

/// With three significant digits.
fn significant(value: f64) -> String {
    let digits = (2.0 - value.abs().max(1e-9).log10().floor()).clamp(0.0, 6.0);
    format!("{value:.*}", digits as usize)
}

fn rounded(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

fn figures(measured: &Measured) -> Figures {
    let values: Vec<f64> = measured.samples.iter().map(Sample::value).collect();
    Figures {
        least: values.iter().copied().fold(f64::INFINITY, f64::min),
        most: values.iter().copied().fold(0.0, f64::max),
        median: median(values),
        unit: if measured.samples[0].bytes > 0.0 { "GB/s" } else { "ms" },
        ratio: (!measured.ratios.is_empty()).then(|| median(measured.ratios.clone())),
    }
}

/// What was measured of a row.
#[derive(Default)]
pub struct Measured {
    samples: Vec<Sample>,
    /// To what it is held against, measured just before: on a busy machine nothing else compares.
    ratios: Vec<f64>,
}

/// Seconds that a row is measured for in a run, if once takes less: a moment says little on a busy machine.
const BRIEF: f64 = 0.3;

/// Runs all rows in turn, `runs` times, so that a machine whose speed drifts treats all alike.
pub fn measure(rows: &mut [Row], runs: usize) -> Vec<Measured> {
    let terminal = std::io::stderr().is_terminal();
    let mut measured: Vec<Measured> = rows.iter().map(|_| Measured::default()).collect();
    for run in 0..runs {
        for i in 0..rows.len() {
            if terminal {
                eprint!("\r\x1b[Krun {} of {runs}: {}", run + 1, rows[i].name);
            }
            let other = rows[i].against.as_ref().and_then(|against| {
                rows.iter().position(|row| row.name == against.row).map(|other| (other, against.by))
            });
            // what earlier rows wrote and removed must not keep the disk from this one
            let _ = Command::new("sync").status();
            let mut seconds = 0.0;
            while seconds < BRIEF {
                let beside = other.map(|(other, by)| {
                    let sample = (rows[other].measure)();
                    measured[other].samples.push(sample);
                    (sample, by)
                });
                let own = (rows[i].measure)();
                seconds += own.seconds + beside.map_or(0.0, |(sample, _)| sample.seconds);
                measured[i].samples.push(own);
                measured[i].ratios.extend(beside.map(|(other, by)| match by {
                    By::Rate => own.value() / other.value(),
                    By::Time => other.value() / own.value(),
                }));
            }
        }
    }
    if terminal {
        eprint!("\r\x1b[K");
    }
    measured
}

/// Prints the table, and returns it as JSON.
pub fn show(rows: &[Row], measured: &[Measured]) -> Value {
    println!("| median | min to max | ratio | target | what |\n|---:|---|---|---|---|");
    let mut list = Vec::new();
    for (row, measured) in rows.iter().zip(measured) {
        let Figures { median, least, most, unit, ratio } = figures(measured);
        let against = row.against.as_ref().zip(ratio);
        let ratio_text = against.map_or(String::new(), |(against, ratio)| {
            let of = if against.by == By::Time { "the time of " } else { "" };
            format!("{} × {of}{}", significant(ratio), against.row)
        });
        let met = against.and_then(|(against, ratio)| {
            against.target.map(|target| match against.by {
                By::Rate => (format!("≥ {target}"), ratio >= target),
                By::Time => (format!("≤ {target}"), ratio <= target),
            })
        });
        let target_text = met.as_ref().map_or(String::new(), |(target, met)| {
            format!("{target}: {}", if *met { "met" } else { "not met" })
        });
        let [shown, least_shown, most_shown] = [median, least, most].map(significant);
        println!(
            "| {shown} {unit} | {least_shown}–{most_shown} | {ratio_text} | {target_text} | {} |",
            row.name
        );
        let by = row.against.as_ref().map(|against| if against.by == By::Time { "time" } else { "rate" });
        list.push(json!({
            "name": row.name, "unit": unit, "median": rounded(median), "min": rounded(least), "max": rounded(most),
            "bytes": measured.samples[0].bytes as u64, "seconds": measured.samples.iter().map(|s| rounded(s.seconds)).collect::<Vec<_>>(),
            "ratio": ratio.map(rounded), "of": row.against.as_ref().map(|a| a.row), "by": by,
            "target": row.against.as_ref().and_then(|a| a.target), "met": met.map(|(_, met)| met),
        }));
    }
    list.into()
}
