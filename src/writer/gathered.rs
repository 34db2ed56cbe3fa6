//! Small writes, joined: neighbours that come one after another go to the file together.

use std::sync::{Mutex, PoisonError};

/// Writes of so many bytes go to the file on their own.
const SMALL: usize = 64 << 10;
/// A run of so many bytes is written.
const LONG: usize = 256 << 10;
/// Runs that may wait at a time. Codes, scales, zero points and shapes of layers grow side by side.
const RUNS: usize = 16;

/// Bytes that wait to be written, in runs of neighbours. All together they take at most 5 MiB.
#[derive(Debug, Default)]
pub(super) struct Gathered(Mutex<Vec<Run>>);

#[derive(Debug)]
struct Run {
    file: usize,
    start: u64,
    bytes: Vec<u8>,
}

impl Gathered {
    /// Takes bytes of a file, and hands what need not wait any longer to `put`: file, place, bytes.
    pub fn add<E>(
        &self,
        file: usize,
        at: u64,
        bytes: &[u8],
        put: impl Fn(usize, u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        if bytes.len() >= SMALL {
            return put(file, at, bytes);
        }
        let mut runs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let goes_on = |run: &Run| run.file == file && run.start + run.bytes.len() as u64 == at;
        let Some(i) = runs.iter().position(goes_on) else {
            // the run that waited longest since it grew makes room, and lends its memory
            let old = if runs.len() == RUNS { Some(runs.remove(0)) } else { None };
            let mut memory = match old {
                Some(Run { file, start, bytes }) => put(file, start, &bytes).map(|()| bytes)?,
                None => Vec::new(),
            };
            memory.clear();
            memory.extend_from_slice(bytes);
            runs.push(Run { file, start: at, bytes: memory });
            return Ok(());
        };
        let mut run = runs.remove(i);
        run.bytes.extend_from_slice(bytes);
        if run.bytes.len() >= LONG {
            put(run.file, run.start, &run.bytes)?;
            run.start += run.bytes.len() as u64;
            run.bytes.clear();
        }
        runs.push(run);
        Ok(())
    }

    /// Hands everything to `put`: before bytes are read again, and at the end.
    pub fn flush<E>(&self, put: impl Fn(usize, u64, &[u8]) -> Result<(), E>) -> Result<(), E> {
        let mut runs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        runs.drain(..)
            .filter(|run| !run.bytes.is_empty())
            .try_for_each(|run| put(run.file, run.start, &run.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    type Puts = RefCell<Vec<(usize, u64, Vec<u8>)>>;

    fn put(puts: &Puts) -> impl Fn(usize, u64, &[u8]) -> Result<(), ()> {
        |file, at, bytes| {
            puts.borrow_mut().push((file, at, bytes.to_vec()));
            Ok(())
        }
    }

    #[test]
    fn neighbours_are_written_together_and_nothing_is_lost() {
        let (gathered, puts) = (Gathered::default(), Puts::default());
        let each = 1000;
        let streams = RUNS as u64;
        let count = 2 * (LONG / each) as u64;
        for i in 0..count {
            for stream in 0..streams {
                let bytes = vec![(i + stream) as u8; each];
                gathered
                    .add(stream as usize % 2, (stream << 32) + i * each as u64, &bytes, put(&puts))
                    .unwrap();
            }
        }
        gathered.flush(put(&puts)).unwrap();
        let puts = puts.into_inner();
        assert!(puts.len() as u64 <= 3 * streams, "{} writes", puts.len());
        for stream in 0..streams {
            let mut of_stream: Vec<_> = puts.iter().filter(|(_, at, _)| at >> 32 == stream).collect();
            of_stream.sort_by_key(|(_, at, _)| *at);
            let mut bytes = Vec::new();
            for (file, at, run) in of_stream {
                assert_eq!((*file, *at), (stream as usize % 2, (stream << 32) + bytes.len() as u64));
                bytes.extend_from_slice(run);
            }
            let expected = (0..count).flat_map(|i| vec![(i + stream) as u8; each]);
            assert!(bytes.into_iter().eq(expected), "stream {stream}");
        }
    }

    #[test]
    fn more_runs_than_may_wait_are_written_oldest_first() {
        let (gathered, puts) = (Gathered::default(), Puts::default());
        for i in 0..RUNS as u64 + 2 {
            gathered.add(0, 10 * i, &[i as u8], put(&puts)).unwrap();
        }
        assert_eq!(*puts.borrow(), [(0, 0, vec![0]), (0, 10, vec![1])]);
        let large = vec![7; SMALL];
        gathered.add(3, 5, &large, put(&puts)).unwrap();
        assert_eq!(puts.borrow()[2], (3, 5, large));
        gathered.flush(put(&puts)).unwrap();
        assert_eq!(puts.borrow().len(), 3 + RUNS);
        gathered.flush(put(&puts)).unwrap();
        assert_eq!(puts.borrow().len(), 3 + RUNS, "nothing is left");
    }
}
