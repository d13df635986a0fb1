//! Sends in flight when the process is replaced by another program, starts one, or ends.
//!
//! Until the notification of a `send_zc` send arrives, the kernel counts the send as a request of
//! the thread that made it, and `execve(2)` waits for the requests of the thread that calls it. In
//! these tests, the peers read nothing until the process has ended, so a call that waits for them
//! does not return.

use std::io::{BufRead, BufReader, ErrorKind};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};

use rustix::net::sockopt::set_socket_recv_buffer_size;
use rustix::process::{Signal, getpid, kill_process, set_parent_process_death_signal};
use uncopied::{Completion, Mechanism, SendOptions, Sender};

use crate::harness::{
    Family, HANG_TIMEOUT, expect_bytes, expect_eof, in_child, is_child, pattern, pattern_pages,
    run_only, small_buffer_sender, wait_until,
};

const SEND_BYTES: usize = 100_001;

/// The number of sends: more than fit into the buffer of a peer that does not read, so that the
/// last one stays in flight.
const SEND_COUNT: usize = 3;

/// The environment variable with the address that the senders of a child process connect to.
const ADDRESS_ENV: &str = "UNCOPIED_TEST_ADDRESS";

/// Returns a sender whose last `send_zc` send is in flight, and the completion of that send.
fn sender_in_flight() -> (Sender<TcpStream>, Completion) {
    let address = std::env::var(ADDRESS_ENV).unwrap();
    let mut in_flight = None;
    // Retry until the last send is in flight, because sends are copied while the user's other
    // processes lock too much memory.
    wait_until("a send in flight", || {
        let options = SendOptions::default().force_mechanisms(&[Mechanism::SendZc]);
        let mut sender = Sender::with(TcpStream::connect(&address).unwrap(), options);
        let sends = (0..SEND_COUNT).map(|_| sender.send(pattern_pages(SEND_BYTES)).unwrap());
        let last = sends.last().unwrap().into_completion();
        in_flight = last.outcome().is_none().then_some((sender, last));
        in_flight.is_some()
    });
    in_flight.unwrap()
}

/// Runs `body` in a child process that runs the test `name`, in a thread that has a send in flight.
/// Asserts that the process ends although no peer reads, and that the peers then receive every
/// byte. Returns the status and the standard output of the process.
///
/// In the child, this function returns `None`, unless `body` ends or replaces the process.
fn in_sending_process(name: &str, body: impl FnOnce(&Completion)) -> Option<Output> {
    if is_child(name) {
        let (_sender, completion) = sender_in_flight();
        body(&completion);
        return None;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // With the default size, the peer's receive buffer may hold all the sends, and none of them
    // would stay in flight.
    set_socket_recv_buffer_size(&listener, 32 << 10).unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    run_only(&mut command, name);
    command.env(ADDRESS_ENV, listener.local_addr().unwrap().to_string());
    let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
    // If this panics, the listener is dropped, which resets the connections and so ends the wait.
    wait_until("the end of the process", || {
        process.try_wait().unwrap().is_some()
    });
    let output = process.wait_with_output().unwrap();
    let mut peers = 0;
    loop {
        match listener.accept() {
            Ok((peer, _)) => expect_all_sends(peer),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
        peers += 1;
    }
    assert!(peers > 0, "{output:?}");
    Some(output)
}

/// Asserts that the stream consists of the bytes that [`sender_in_flight`] has sent.
fn expect_all_sends(mut peer: TcpStream) {
    peer.set_nonblocking(false).unwrap();
    peer.set_read_timeout(Some(HANG_TIMEOUT)).unwrap();
    for _ in 0..SEND_COUNT {
        expect_bytes(&mut peer, &pattern(SEND_BYTES));
    }
    expect_eof(&mut peer);
}

/// Another thread has sends in flight as well, so `exec` must wait for neither thread.
#[test]
fn exec_does_not_wait_for_peers() {
    let name = "exec::exec_does_not_wait_for_peers";
    let output = in_sending_process(name, |completion| {
        let of_other_thread = std::thread::spawn(sender_in_flight).join().unwrap();
        assert!(of_other_thread.1.outcome().is_none());
        assert!(completion.outcome().is_none());
        panic!("{}", uncopied::exec(Command::new("echo").arg("executed")));
    });
    if let Some(Output { status, stdout, .. }) = output {
        assert!(status.success(), "{status}");
        assert!(stdout.ends_with(b"executed\n"));
    }
}

/// The parent-death signal is a setting of a thread that new threads do not inherit, so `exec` has
/// to copy it. The kernel sends the signal when the thread that started the process ends.
#[test]
fn the_new_program_has_the_process_id_and_the_parent_death_signal() {
    let name = "exec::the_new_program_has_the_process_id_and_the_parent_death_signal";
    if is_child(name) {
        set_parent_process_death_signal(Some(Signal::USR1)).unwrap();
        let script = "echo process $$; exec sleep 30";
        panic!(
            "{}",
            uncopied::exec(Command::new("sh").args(["-c", script]))
        );
    }
    let parent = std::thread::spawn(move || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        run_only(&mut command, name);
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        // The child's test harness has begun the line with the name of the test.
        let id = |line: String| Some(line.split_once("process ")?.1.parse().unwrap());
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        assert_eq!(lines.find_map(|line| id(line.unwrap())), Some(process.id()));
        process
    });
    let status = parent.join().unwrap().wait().unwrap();
    assert_eq!(status.signal(), Some(Signal::USR1.as_raw()));
}

#[test]
fn a_process_can_go_on_after_a_failed_exec() {
    in_child(
        "exec::a_process_can_go_on_after_a_failed_exec",
        |_| {},
        || {
            let plan = [Mechanism::SendZc];
            let (mut sender, mut peer) =
                small_buffer_sender(Family::Tcp, &plan, SendOptions::default());
            let before = sender.send(pattern_pages(SEND_BYTES)).unwrap();
            let error = uncopied::exec(&mut Command::new("/nonexistent"));
            assert_eq!(error.kind(), ErrorKind::NotFound);
            expect_bytes(&mut peer, &pattern(SEND_BYTES));
            let after = sender.send(pattern_pages(SEND_BYTES)).unwrap();
            expect_bytes(&mut peer, &pattern(SEND_BYTES));
            for sent in [before, after] {
                let outcome = sent.completion().wait(Some(HANG_TIMEOUT)).unwrap();
                assert_eq!(outcome.bytes, SEND_BYTES as u64);
            }
        },
    );
}

/// The thread that calls `execve(2)` in a child process is not the one that has sends in flight.
/// The sending process itself ends with a call of `exit(3)`.
#[test]
fn starting_a_program_and_exiting_do_not_wait_for_peers() {
    let name = "exec::starting_a_program_and_exiting_do_not_wait_for_peers";
    let output = in_sending_process(name, |completion| {
        assert!(Command::new("true").status().unwrap().success());
        // If PATH is set, `Command` calls `fork` and `exec` instead of `posix_spawn`.
        let path = std::env::var_os("PATH").unwrap();
        let status = Command::new("true").env("PATH", path).status().unwrap();
        assert!(status.success());
        assert!(completion.outcome().is_none());
    });
    if let Some(Output { status, .. }) = output {
        assert!(status.success(), "{status}");
    }
}

#[test]
fn sigkill_ends_a_process_that_has_sends_in_flight() {
    let name = "exec::sigkill_ends_a_process_that_has_sends_in_flight";
    let output = in_sending_process(name, |completion| {
        assert!(completion.outcome().is_none());
        kill_process(getpid(), Signal::KILL).unwrap();
    });
    if let Some(Output { status, .. }) = output {
        assert_eq!(status.signal(), Some(Signal::KILL.as_raw()));
    }
}
