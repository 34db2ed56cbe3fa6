//! Any text as the options of `monoquant quantize`, a line each: regular expressions, overrides, sizes, numbers.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    fuzz::within(bytes.len() + fuzz::A_REGEX, || {
        fuzz::request(text);
    });
    // what an override says is said again by its text
    if let Ok(said) = text.parse::<monoquant::overrides::Override>() {
        let again = said.to_string().parse::<monoquant::overrides::Override>().unwrap();
        assert_eq!(again.changes, said.changes, "{text:?}");
        assert_eq!(again.to_string(), said.to_string());
    }
});
