use proptest::prelude::*;

use super::*;

/// Every element's place, computed naively.
fn places(v: &View, rows: &Range<usize>, cols: &Range<usize>) -> Vec<u64> {
    let at = |r: usize, c: usize| v.offset + r as u64 * v.row_stride + c as u64 * v.col_stride;
    rows.clone().flat_map(|r| cols.clone().map(move |c| at(r, c))).collect()
}

fn tensor(elements: u64, elem: u64) -> Vec<u8> {
    (0..elements * elem).map(|i| (i.wrapping_mul(2654435761) >> 7) as u8).collect()
}

/// Gathers and scatters a window, compares with the naive way, and returns the number of reads and writes.
fn both_ways(v: View, rows: Range<usize>, cols: Range<usize>, elem: u64) -> (usize, usize) {
    let expected = places(&v, &rows, &cols);
    let limit = expected.iter().max().map_or(0, |m| m + 1) + 3;
    let stored = tensor(limit, elem);
    let lattice = Lattice::new(&v, rows, cols, limit).unwrap();
    assert_eq!(lattice.elements(), expected.len() as u64);

    let mut out = vec![0; expected.len() * elem as usize];
    let mut reads = 0;
    lattice
        .gather(elem, &mut out, |at, bytes| {
            reads += 1;
            assert!(bytes.len() <= SCRATCH as usize || lattice.is_dense());
            bytes.copy_from_slice(&stored[at as usize..][..bytes.len()]);
            Ok(())
        })
        .unwrap();
    let element = |i: u64| &stored[(i * elem) as usize..][..elem as usize];
    for (got, &at) in out.chunks(elem as usize).zip(&expected) {
        assert_eq!(got, element(at), "{v:?}");
    }

    let mut writes = 0;
    let distinct: std::collections::HashSet<_> = expected.iter().collect();
    if lattice.is_distinct() {
        assert_eq!(distinct.len(), expected.len(), "{v:?} is not distinct");
        let background = vec![0xa5; stored.len()];
        let written = std::cell::RefCell::new(background.clone());
        lattice
            .scatter(
                elem,
                &out,
                |at, bytes| {
                    assert!(lattice.rewrites(elem));
                    bytes.copy_from_slice(&written.borrow()[at as usize..][..bytes.len()]);
                    Ok(())
                },
                |at, bytes| {
                    writes += 1;
                    written.borrow_mut()[at as usize..][..bytes.len()].copy_from_slice(bytes);
                    Ok(())
                },
            )
            .unwrap();
        let mut want = background;
        for &at in &expected {
            let bytes = (at * elem) as usize..((at + 1) * elem) as usize;
            want[bytes.clone()].copy_from_slice(&stored[bytes]);
        }
        assert!(written.into_inner() == want, "{v:?}");
    }
    (reads, writes)
}

fn view(offset: u64, rows: usize, cols: usize, row_stride: u64, col_stride: u64) -> View {
    View { offset, rows, cols, row_stride, col_stride }
}

#[test]
fn contiguous_is_one_access() {
    assert_eq!(both_ways(View::contiguous(300, 700), 0..300, 0..700, 4), (1, 1));
    assert_eq!(both_ways(View::contiguous(300, 700), 17..40, 0..700, 2), (1, 1));
    assert_eq!(both_ways(View::contiguous(300, 700), 17..18, 3..500, 2), (1, 1));
    // More than the scratch memory, straight into the caller's buffer.
    assert_eq!(both_ways(View::contiguous(3000, 4000), 0..3000, 0..4000, 1), (1, 1));
}

#[test]
fn transposed_is_few_accesses() {
    assert_eq!(both_ways(view(5, 1000, 2000, 1, 1000), 0..1000, 0..2000, 2), (1, 1));
    // 24 MB through 8 MiB.
    let (reads, writes) = both_ways(view(0, 3000, 2000, 1, 3000), 0..3000, 0..2000, 4);
    assert!(reads <= 4 && writes <= 4, "{reads} {writes}");
    // A block of the rows: the gaps are read through.
    let (reads, _) = both_ways(view(0, 3000, 100, 1, 3000), 512..1024, 0..100, 2);
    assert_eq!(reads, 1);
    // Gaps too large for that: one access a line.
    let (reads, writes) = both_ways(view(0, 30000, 50, 1, 30000), 512..1024, 0..50, 2);
    assert_eq!((reads, writes), (50, 50));
}

#[test]
fn interleaved_windows_are_right() {
    // Gate and up projection in turns: by row, by column, and transposed by column.
    both_ways(view(64, 100, 64, 128, 1), 0..100, 0..64, 2);
    both_ways(view(0, 50, 9000, 18000, 1), 3..50, 0..9000, 2);
    let (reads, writes) = both_ways(view(1, 100, 64, 128, 2), 0..100, 0..64, 4);
    assert_eq!((reads, writes), (1, 1));
    both_ways(view(1, 64, 100, 2, 128), 5..60, 7..99, 2);
    both_ways(view(0, 3, 5, 70000, 9000), 0..3, 0..5, 1);
    // Lines longer than the scratch memory, in elements that are no power of two.
    both_ways(view(3, 2, 5_000_000, 10_000_001, 2), 0..2, 0..5_000_000, 1);
    both_ways(view(1, 9_000_000, 2, 1, 9_000_000), 0..9_000_000, 0..2, 1);
    both_ways(view(3, 20, 30, 200, 3), 0..20, 0..30, 18);
}

#[test]
fn empty_and_broadcast_windows_are_right() {
    assert_eq!(both_ways(View::contiguous(0, 7), 0..0, 0..7, 4), (0, 0));
    assert_eq!(both_ways(View::contiguous(7, 7), 3..3, 2..5, 4), (0, 0));
    both_ways(view(2, 5, 6, 0, 1), 0..5, 0..6, 2);
    both_ways(view(2, 5, 6, 1, 0), 0..5, 0..6, 2);
    both_ways(view(2, 5, 6, 0, 0), 0..5, 0..6, 2);
    // Strides of an axis with one element mean nothing.
    both_ways(view(2, 1, 6, 0, 1), 0..1, 0..6, 2);
    both_ways(view(2, 1, 6, u64::MAX, 1), 0..1, 0..6, 2);
    both_ways(view(2, 6, 1, 1, u64::MAX), 0..6, 0..1, 2);
}

#[test]
fn windows_outside_the_tensor_are_refused() {
    for (v, rows, cols, limit) in [
        (View::contiguous(2, 3), 0..2, 0..3, 5),
        (View::contiguous(2, 3), 0..3, 0..3, 50),
        (View::contiguous(2, 3), 0..2, 1..4, 50),
        #[allow(clippy::reversed_empty_ranges)]
        (View::contiguous(2, 3), 2..1, 0..3, 50),
        (view(u64::MAX, 2, 2, 1, 1), 0..2, 0..2, 50),
        (view(0, 3, 3, u64::MAX / 2 + 1, 1), 0..3, 0..3, u64::MAX),
        (view(0, usize::MAX, usize::MAX, u64::MAX, u64::MAX), 0..usize::MAX, 0..usize::MAX, 50),
    ] {
        assert!(Lattice::new(&v, rows, cols, limit).is_err(), "{v:?}");
    }
}

proptest! {
    #[test]
    fn any_window_is_right(
        offset in 0u64..20,
        (rows, r0, r1) in (1usize..40).prop_flat_map(|n| (Just(n), 0..=n, 0..=n)),
        (cols, c0, c1) in (1usize..40).prop_flat_map(|n| (Just(n), 0..=n, 0..=n)),
        row_stride in prop_oneof![0u64..50, Just(5000), Just(40)],
        col_stride in prop_oneof![Just(1u64), 0u64..50, Just(9000)],
        elem in prop_oneof![Just(1u64), Just(2), Just(4), Just(8), Just(3)],
    ) {
        let v = view(offset, rows, cols, row_stride, col_stride);
        both_ways(v, r0.min(r1)..r0.max(r1), c0.min(c1)..c0.max(c1), elem);
    }
}
