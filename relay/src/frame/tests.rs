use bytes::{BufMut as _, Bytes, BytesMut};
use postern_proto::v1::{RelayFrame, TcpForwardFrame, relay_frame, tcp_forward_frame};
use proptest::prelude::*;
use prost::Message as _;

use super::*;

fn frame(payload: &[u8]) -> Vec<u8> {
    let (bytes, length) = header(payload.len());
    let mut frame = bytes[HEADROOM - length..].to_vec();
    frame.extend_from_slice(payload);
    frame
}

fn grpc(message: &[u8]) -> Vec<u8> {
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
    framed.extend_from_slice(message);
    framed
}

fn scan_all(data: &[u8], max: usize) -> Result<u64, FrameError> {
    let mut scanner = Scanner::new(max);
    scanner.scan(data)?;
    scanner.finish()?;
    Ok(scanner.payload_bytes())
}

fn decode(chunks: &[Bytes]) -> Result<Vec<u8>, FrameError> {
    let mut decoder = Decoder::new(MAX_MESSAGE);
    let mut payload = Vec::new();
    for chunk in chunks {
        decoder.feed(chunk.clone());
        while let Some(slice) = decoder.next_payload()? {
            payload.extend_from_slice(&slice);
        }
    }
    decoder.finish()?;
    Ok(payload)
}

#[test]
fn our_frames_are_what_the_generated_code_writes_for_either_message() {
    for size in [1, 2, 127, 128, 16_383, 16_384, 65_536, 200_000] {
        let payload = vec![7; size];
        let relay =
            RelayFrame { payload: Some(relay_frame::Payload::Data(payload.clone().into())) };
        let forward = TcpForwardFrame {
            payload: Some(tcp_forward_frame::Payload::Data(payload.clone().into())),
        };
        assert_eq!(frame(&payload), grpc(&relay.encode_to_vec()), "{size}");
        assert_eq!(frame(&payload), grpc(&forward.encode_to_vec()), "{size}");
    }
}

#[test]
fn empty_messages_and_empty_data_carry_no_bytes() {
    let mut stream = grpc(&[]);
    stream.extend(grpc(&[DATA_TAG, 0]));
    stream.extend(frame(b"x"));
    assert_eq!(scan_all(&stream, MAX_MESSAGE), Ok(1));
    assert_eq!(decode(&[stream.into()]), Ok(b"x".to_vec()));
}

#[test]
fn each_fault_has_its_error() {
    let cases: &[(&[u8], FrameError)] = &[
        (&[1, 0, 0, 0, 1], FrameError::Compressed { flag: 1 }),
        (&[0, 0, 0x10, 0, 1], FrameError::TooLarge { length: 0x10_0001, max: MAX_MESSAGE }),
        (&grpc(&[0x0a, 1, 0]), FrameError::UnexpectedField { tag: 0x0a }),
        (&grpc(&[0x1a, 1, 0]), FrameError::UnexpectedField { tag: 0x1a }),
        (&grpc(&[DATA_TAG]), FrameError::BadVarint),
        (&grpc(&[DATA_TAG, 0x80]), FrameError::BadVarint),
        (&grpc(&[DATA_TAG, 2, 0]), FrameError::LengthMismatch { payload: 2, left: 1 }),
        (&grpc(&[DATA_TAG, 1, 0, 0]), FrameError::LengthMismatch { payload: 1, left: 2 }),
        (&[0, 0, 0], FrameError::Truncated),
        (&[0, 0, 0, 0, 3, DATA_TAG], FrameError::Truncated),
        (&[0, 0, 0, 0, 4, DATA_TAG, 2, 9], FrameError::Truncated),
    ];
    for (bytes, error) in cases {
        assert_eq!(scan_all(bytes, MAX_MESSAGE).as_ref(), Err(error), "{bytes:?}");
    }
    let endless = grpc(&[[DATA_TAG].as_slice(), &[0xff; 12]].concat());
    assert_eq!(scan_all(&endless, MAX_MESSAGE), Err(FrameError::BadVarint));
}

#[test]
fn the_limit_is_inclusive() {
    let exactly = frame(&[0; 96]);
    let message = exactly.len() - GRPC_PREFIX_LEN;
    assert_eq!(scan_all(&exactly, message), Ok(96));
    assert_eq!(
        scan_all(&exactly, message - 1),
        Err(FrameError::TooLarge { length: message, max: message - 1 })
    );
}

#[test]
fn a_varint_longer_than_needed_is_understood_as_protobuf_says() {
    // 1 as two bytes.
    assert_eq!(scan_all(&grpc(&[DATA_TAG, 0x81, 0x00, 9]), MAX_MESSAGE), Ok(1));
}

#[test]
fn the_decoder_copies_nothing() {
    let stream = Bytes::from(frame(b"payload"));
    let at = stream.as_ptr() as usize + stream.len() - b"payload".len();
    let mut decoder = Decoder::new(MAX_MESSAGE);
    decoder.feed(stream);
    let payload = decoder.next_payload().unwrap().unwrap();
    assert_eq!((payload.as_ptr() as usize, payload.as_ref()), (at, b"payload".as_slice()));
}

#[test]
fn the_encoder_leaves_the_payload_where_it_was_read() {
    let mut encoder = Encoder::new(1024);
    let mut room = encoder.unfilled();
    assert_eq!(room.remaining_mut(), 1024);
    let at = room.chunk_mut().as_mut_ptr() as usize;
    room.put_slice(b"0123456789");
    let sent = encoder.take_frame().unwrap();
    assert_eq!(sent.as_ref(), frame(b"0123456789"));
    assert_eq!(sent.as_ptr() as usize + sent.len() - 10, at);
    assert_eq!(encoder.take_frame(), None);
}

#[test]
fn the_encoder_takes_memory_back_that_was_sent() {
    let mut encoder = Encoder::new(READ_SIZE);
    let mut places = std::collections::HashSet::new();
    for _ in 0..64 {
        let mut room = encoder.unfilled();
        room.put_bytes(1, READ_SIZE);
        let sent = encoder.take_frame().unwrap();
        places.insert(sent.as_ptr() as usize);
    }
    assert!(places.len() <= 2, "{} buffers for frames sent one after another", places.len());
}

#[test]
fn small_reads_share_a_buffer() {
    let mut encoder = Encoder::new(READ_SIZE);
    let mut sent = Vec::new();
    for _ in 0..100 {
        encoder.unfilled().put_slice(&[5; 32]);
        sent.push(encoder.take_frame().unwrap());
    }
    let first = sent[0].as_ptr() as usize;
    let last = sent[99].as_ptr() as usize;
    assert!(last - first < READ_SIZE, "small frames took more than one buffer");
}

/// Cuts bytes at the given places.
fn cut(stream: &[u8], sizes: &[usize]) -> Vec<Bytes> {
    let mut rest = BytesMut::from(stream).freeze();
    let mut chunks = Vec::new();
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        chunks.push(rest.split_to((*size).min(rest.len())));
    }
    chunks
}

proptest! {
    #[test]
    fn payload_survives_any_framing_and_any_chunking(
        payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20),
        sizes in prop::collection::vec(1_usize..64, 1..8),
    ) {
        let mut encoder = Encoder::new(128);
        let mut stream = Vec::new();
        for payload in &payloads {
            let mut rest = &payload[..];
            while !rest.is_empty() {
                let mut room = encoder.unfilled();
                let take = rest.len().min(room.remaining_mut());
                room.put_slice(&rest[..take]);
                rest = &rest[take..];
                stream.extend_from_slice(&encoder.take_frame().unwrap());
            }
        }
        let whole = payloads.concat();
        let mut scanner = Scanner::new(MAX_MESSAGE);
        let chunks = cut(&stream, &sizes);
        for chunk in &chunks {
            scanner.scan(chunk).unwrap();
        }
        scanner.finish().unwrap();
        prop_assert_eq!(scanner.payload_bytes(), whole.len() as u64);
        prop_assert_eq!(decode(&chunks).unwrap(), whole);
    }

    #[test]
    fn any_bytes_mean_the_same_in_any_chunking(data in prop::collection::vec(
        prop_oneof![Just(0_u8), Just(1), Just(2), Just(3), Just(DATA_TAG), any::<u8>()], 0..200))
    {
        fuzz_frame(&data);
    }

    #[test]
    fn a_cut_stream_is_never_taken_for_a_whole_one(
        payload in prop::collection::vec(any::<u8>(), 1..200),
        keep in any::<prop::sample::Index>(),
    ) {
        let stream = frame(&payload);
        let kept = keep.index(stream.len());
        prop_assert_eq!(
            scan_all(&stream[..kept], MAX_MESSAGE),
            if kept == 0 { Ok(0) } else { Err(FrameError::Truncated) }
        );
    }
}
