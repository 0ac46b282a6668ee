//! Every interleaving of two or three threads over the accounting of `relay_caps`, by loom.
//!
//! The very file that the layer is built from is compiled here against loom's lock.

#[path = "../src/relay_caps/ledger.rs"]
#[allow(dead_code, unreachable_pub, reason = "a part of the layer, without the rest of it")]
mod ledger;

mod sync {
    pub(super) use loom::sync::{Mutex, MutexGuard};
}

use ledger::{Caps, Full, Ledger};
use loom::{sync::Arc, thread};

fn ledger(pending: u32, live: u32) -> Arc<Ledger<u8>> {
    let classes = vec![("ssh".to_owned(), 1)];
    Arc::new(Ledger::new(Caps { pending, live, classes, ..Caps::default() }))
}

fn is_empty(ledger: &Ledger<u8>) {
    let counts = ledger.counts();
    assert_eq!((counts.pending, counts.live, ledger.keys()), (0, 0, 0), "something has leaked");
}

/// Opens, perhaps claims, and ends one relay. Whether it was let in.
fn one(ledger: &Ledger<u8>, key: u8, claim: bool) -> bool {
    let Ok(mut ticket) = ledger.admit(Some(&key), None) else { return false };
    if claim {
        ledger.promote(&mut ticket);
        // Superseded and replayed: claimed again, which must count once.
        ledger.promote(&mut ticket);
    }
    ledger.release(ticket);
    true
}

#[test]
fn open_claim_close_cancel_and_reap_leak_nothing() {
    loom::model(|| {
        let books = ledger(0, 0);
        let threads = [(1, true), (1, false)].map(|(key, claim)| {
            let books = Arc::clone(&books);
            thread::spawn(move || one(&books, key, claim))
        });
        assert!(one(&books, 1, true), "without caps all are let in");
        for thread in threads {
            assert!(thread.join().expect("no panic, so nothing was freed twice"));
        }
        is_empty(&books);
        assert_eq!(books.counts().opened, 2);
    });
}

#[test]
fn a_cap_is_never_exceeded_and_a_free_place_is_given() {
    loom::model(|| {
        let books = ledger(1, 0);
        let threads = [1, 2].map(|key| {
            let books = Arc::clone(&books);
            thread::spawn(move || {
                let ticket = books.admit(Some(&key), None);
                assert!(books.counts().pending <= 1, "the cap is exceeded");
                let admitted = ticket.is_ok();
                ticket.map(|ticket| books.release(ticket)).ok();
                admitted
            })
        });
        let admitted = threads.map(|thread| thread.join().expect("no panic"));
        assert!(admitted.contains(&true), "one of two that race for one place gets it");
        is_empty(&books);
    });
}

#[test]
fn a_class_cap_holds_across_pending_and_live() {
    loom::model(|| {
        let books = ledger(0, 0);
        let thread = thread::spawn({
            let books = Arc::clone(&books);
            move || {
                let mut ticket = books.admit(Some(&1), Some("ssh")).ok()?;
                books.promote(&mut ticket);
                Some(ticket)
            }
        });
        let here = books.admit(Some(&1), Some("ssh"));
        let there = thread.join().expect("no panic");
        match (&here, &there) {
            (Ok(_), Some(_)) => panic!("two are in under a cap of one"),
            (Err(full), None) => panic!("neither is in: {full:?}"),
            (Err(full), Some(_)) => assert_eq!(*full, Full::Class("ssh", 1)),
            (Ok(_), None) => {}
        }
        here.into_iter().chain(there).for_each(|ticket| books.release(ticket));
        is_empty(&books);
    });
}

#[test]
fn caps_changed_under_way_leak_nothing() {
    loom::model(|| {
        let books = ledger(1, 1);
        let thread = thread::spawn({
            let books = Arc::clone(&books);
            move || one(&books, 1, true)
        });
        books.set_caps(Caps { pending: 2, ..Caps::default() });
        one(&books, 1, true);
        thread.join().expect("no panic");
        is_empty(&books);
    });
}
