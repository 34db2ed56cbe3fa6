//! Any bytes as statistics of `monoquant calibrate`.
#![no_main]

use monoquant::calibration::Calibration;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::with_file("statistics.json", bytes, |path| {
    let read = match Calibration::read(path) {
        Ok(read) => read,
        Err(e) => return fuzz::sound(e),
    };
    for module in read.layers.keys() {
        match read.inputs(module) {
            Ok(None) => {}
            Ok(Some(input)) => {
                assert!(input.scale > 0.0 && input.scale.is_finite() && (-128..128).contains(&input.zero_point));
                assert!(!read.symmetric || input.zero_point == 0);
            }
            Err(e) => fuzz::sound(e),
        }
    }
    // the text of what was read is read as the same
    let again = Calibration::parse(&read.to_json()).unwrap();
    assert_eq!(again.to_json(), read.to_json());
}));
