//! Which jobs are done, and with them which files are finished.

use crate::{
    error::Result,
    plan::{Job, Plan},
    report::Squares,
    stream::JobResult,
    writer::Writer,
};
use serde_json::{Value, json};
use std::{cell::RefCell, collections::BTreeMap};

/// The jobs of a plan, as they are done.
pub(super) struct Ledger<'a> {
    plan: &'a Plan,
    writer: &'a Writer,
    /// What came of the jobs that an earlier run did.
    earlier: BTreeMap<usize, JobResult>,
    /// Jobs that write into each file, but for files that are finished.
    of_file: Vec<Vec<usize>>,
    state: RefCell<State>,
}

struct State {
    /// Jobs that each file waits for.
    missing: Vec<usize>,
    /// What came of the jobs of unfinished files; of one file alone nothing is noted.
    results: BTreeMap<usize, JobResult>,
}

impl<'a> Ledger<'a> {
    /// Done are the jobs that write into no other files than those that the writer has finished.
    pub fn new(plan: &'a Plan, writer: &'a Writer) -> Self {
        let mut of_file = vec![Vec::new(); plan.files.len()];
        let mut earlier = BTreeMap::new();
        for (number, job) in plan.jobs.iter().enumerate() {
            let mut finished = !job.outputs.is_empty();
            for file in files(job).into_iter().filter(|&file| !writer.is_finished(file)) {
                of_file[file].push(number);
                finished = false;
            }
            if finished {
                let result = writer.earlier_jobs().get(&number).and_then(restored);
                earlier.insert(number, result.unwrap_or_default());
            }
        }
        let missing = of_file.iter().map(Vec::len).collect();
        Ledger {
            plan,
            writer,
            earlier,
            of_file,
            state: RefCell::new(State { missing, results: BTreeMap::new() }),
        }
    }

    /// What came of the jobs that an earlier run did.
    pub fn earlier(&self) -> &BTreeMap<usize, JobResult> {
        &self.earlier
    }

    /// Takes up a job that is done; a file that waited for it only is finished.
    pub fn done(&self, number: usize, result: &JobResult) -> Result<()> {
        let State { missing, results } = &mut *self.state.borrow_mut();
        if self.plan.files.len() > 1 && *result != JobResult::default() {
            results.insert(number, result.clone());
        }
        for file in files(&self.plan.jobs[number]) {
            if self.writer.is_finished(file) {
                continue;
            }
            missing[file] -= 1;
            if missing[file] == 0 {
                let jobs = &self.of_file[file];
                let noted = jobs.iter().filter_map(|job| Some((*job, noted(results.get(job)?))));
                self.writer.finish(file, noted.collect())?;
                // nobody asks for those again whose files are all finished
                for job in
                    jobs.iter().filter(|&&job| files(&self.plan.jobs[job]).iter().all(|&f| missing[f] == 0))
                {
                    results.remove(job);
                }
            }
        }
        Ok(())
    }
}

/// The files that a job writes into.
fn files(job: &Job) -> Vec<usize> {
    let mut files: Vec<usize> = job.outputs.iter().map(|place| place.file).collect();
    files.sort_unstable();
    files.dedup();
    files
}

/// Floats as their bits: they come back as they were.
fn noted(result: &JobResult) -> Value {
    let squares = result.squares.iter().map(|s| {
        let [signal, noise, peak] = [s.signal, s.noise, s.peak].map(f64::to_bits);
        json!([signal, noise, peak, s.count])
    });
    json!({"squares": squares.collect::<Vec<_>>(), "saturated": result.saturated})
}

fn restored(value: &Value) -> Option<JobResult> {
    let squares = value["squares"].as_array()?.iter().map(|s| {
        let [signal, noise, peak] = [0, 1, 2].map(|i| s[i].as_u64().map(f64::from_bits));
        Some(Squares { signal: signal?, noise: noise?, peak: peak?, count: s[3].as_u64()? })
    });
    Some(JobResult { squares: squares.collect::<Option<_>>()?, saturated: value["saturated"].as_u64()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_back_as_they_were() {
        let squares =
            Squares { signal: 0.1 + 0.2, noise: f64::MIN_POSITIVE, peak: f64::INFINITY, count: u64::MAX };
        let result = JobResult { squares: vec![squares, Squares::default()], saturated: 7 };
        let text = noted(&result).to_string();
        assert_eq!(restored(&serde_json::from_str(&text).unwrap()), Some(result));
        assert_eq!(restored(&json!({"squares": [[1, 2, 3]], "saturated": 0})), None);
    }
}
