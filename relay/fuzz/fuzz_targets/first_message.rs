#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| postern_relay::body::fuzz_first_message(data));
