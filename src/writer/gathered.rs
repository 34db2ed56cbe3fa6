//! Small writes, joined: neighbours go to the file together, in whatever order they come.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// Writes of so many bytes go to the file on their own.
const SMALL: usize = 64 << 10;
/// A run of so many bytes is written.
const LONG: usize = 256 << 10;
/// Runs that may wait at a time. Shapes come long before the codes and scales that lie between them.
const RUNS: usize = 256;
/// Written runs whose memory is kept.
const SPARE: usize = 8;
/// Bytes that may wait at a time.
const MOST: usize = 4 << 20;

/// Bytes that wait to be written, in runs of neighbours.
#[derive(Debug, Default)]
pub(super) struct Gathered(Mutex<Waiting>);

/// A file, and a byte of it.
type Place = (usize, u64);

#[derive(Debug, Default)]
struct Waiting {
    runs: BTreeMap<Place, Run>,
    /// Memory of runs that were written, for those to come.
    spare: Vec<Vec<u8>>,
    /// Of all runs.
    bytes: usize,
    writes: u64,
}

#[derive(Debug, Default)]
struct Run {
    bytes: Vec<u8>,
    /// The write that it grew by last.
    grown: u64,
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
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let run = waiting.join(file, at, bytes);
        let put = |waiting: &mut Waiting, run: Place| {
            let bytes = waiting.take(run);
            let done = put(run.0, run.1, &bytes);
            waiting.keep(bytes);
            done
        };
        if waiting.runs[&run].bytes.len() >= LONG {
            put(&mut waiting, run)?;
        }
        while (waiting.runs.len() > RUNS || waiting.bytes > MOST)
            && let Some(run) = waiting.oldest()
        {
            put(&mut waiting, run)?;
        }
        Ok(())
    }

    /// Hands a file's bytes before `end` to `put`, so that they can be read; what comes later waits for its neighbours.
    pub fn flush_before<E>(
        &self,
        file: usize,
        end: u64,
        put: impl Fn(usize, u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(run) = waiting.runs.range((file, 0)..(file, end)).next().map(|(&run, _)| run) {
            let bytes = waiting.take(run);
            put(file, run.1, &bytes)?;
            waiting.keep(bytes);
        }
        Ok(())
    }

    /// Hands everything to `put`: before bytes are read again, and at the end.
    pub fn flush<E>(&self, put: impl Fn(usize, u64, &[u8]) -> Result<(), E>) -> Result<(), E> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.bytes = 0;
        for ((file, at), run) in std::mem::take(&mut waiting.runs) {
            put(file, at, &run.bytes)?;
            waiting.keep(run.bytes);
        }
        Ok(())
    }
}

impl Waiting {
    /// Bytes, the run that they go on, and the run that goes on them become one.
    fn join(&mut self, file: usize, at: u64, bytes: &[u8]) -> Place {
        self.writes += 1;
        self.bytes += bytes.len();
        let before = self.runs.range(..(file, at)).next_back();
        let before = before.filter(|((f, start), run)| (*f, start + run.bytes.len() as u64) == (file, at));
        let place = before.map_or((file, at), |(place, _)| *place);
        let after = self.runs.remove(&(file, at + bytes.len() as u64)).unwrap_or_default();
        let spare = &mut self.spare;
        let run = self
            .runs
            .entry(place)
            .or_insert_with(|| Run { bytes: spare.pop().unwrap_or_default(), grown: 0 });
        run.grown = self.writes;
        run.bytes.extend_from_slice(bytes);
        run.bytes.extend_from_slice(&after.bytes);
        self.keep(after.bytes);
        place
    }

    fn keep(&mut self, mut bytes: Vec<u8>) {
        if bytes.capacity() >= SMALL && self.spare.len() < SPARE {
            bytes.clear();
            self.spare.push(bytes);
        }
    }

    /// The run that waited longest since it grew.
    fn oldest(&self) -> Option<Place> {
        self.runs.iter().min_by_key(|(_, run)| run.grown).map(|(place, _)| *place)
    }

    fn take(&mut self, place: Place) -> Vec<u8> {
        let bytes = self.runs.remove(&place).unwrap_or_default().bytes;
        self.bytes -= bytes.len();
        bytes
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
        let streams = MOST as u64 / LONG as u64 - 1;
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
    fn bytes_join_what_lies_before_and_behind_them() {
        let (gathered, puts) = (Gathered::default(), Puts::default());
        let add = |at, byte| gathered.add(0, at, &[byte; 10], put(&puts)).unwrap();
        // as layers do: shapes long before, then codes, then scales, which lie before the codes
        (0..100).for_each(|layer| add(30 * layer + 20, 3));
        for layer in 0..100 {
            add(30 * layer + 10, 2);
            add(30 * layer, 1);
        }
        gathered.flush(put(&puts)).unwrap();
        let layer = [[1; 10], [2; 10], [3; 10]].concat();
        assert_eq!(puts.into_inner(), [(0, 0, layer.repeat(100))]);
    }

    #[test]
    fn bytes_behind_those_that_are_asked_for_go_on_waiting() {
        let (gathered, puts) = (Gathered::default(), Puts::default());
        let add = |file, at, byte| gathered.add(file, at, &[byte; 10], put(&puts)).unwrap();
        add(1, 20, 3);
        add(0, 0, 1);
        add(1, 0, 1);
        gathered.flush_before(1, 10, put(&puts)).unwrap();
        assert_eq!(*puts.borrow(), [(1, 0, vec![1; 10])]);
        add(1, 10, 2);
        gathered.flush(put(&puts)).unwrap();
        assert_eq!(puts.borrow()[1..], [(0, 0, vec![1; 10]), (1, 10, [[2; 10], [3; 10]].concat())]);
    }

    #[test]
    fn more_runs_than_may_wait_are_written_oldest_first() {
        let (gathered, puts) = (Gathered::default(), Puts::default());
        for i in 0..RUNS as u64 + 2 {
            gathered.add(0, 10 * i, &[i as u8], put(&puts)).unwrap();
        }
        assert_eq!(*puts.borrow(), [(0, 0, vec![0]), (0, 10, vec![1])]);
        let held = Gathered::default();
        let (all, puts_of_all) = (vec![1; SMALL - 1], Puts::default());
        for i in 0..1000 {
            held.add(0, i << 20, &all, put(&puts_of_all)).unwrap();
        }
        let held = 1000 - puts_of_all.borrow().len();
        assert!(held * all.len() <= MOST && held > 0, "{held} runs wait");
        let large = vec![7; SMALL];
        gathered.add(3, 5, &large, put(&puts)).unwrap();
        assert_eq!(puts.borrow()[2], (3, 5, large));
        gathered.flush(put(&puts)).unwrap();
        assert_eq!(puts.borrow().len(), 3 + RUNS);
        gathered.flush(put(&puts)).unwrap();
        assert_eq!(puts.borrow().len(), 3 + RUNS, "nothing is left");
    }
}
