//! Counts samples by what they show, by kernel function, and by thread.

use std::collections::{BTreeMap, HashMap};

use super::classify::{Activity, classify};
use super::process;
use super::sampling::Observation;
use super::symbols::KernelSymbols;

/// The name of a function that cannot be found.
const UNKNOWN_FUNCTION: &str = "[unknown]";

/// The samples of one thread.
#[derive(Clone, Debug, Default)]
pub(super) struct ThreadCount {
    pub(super) process: i32,
    pub(super) name: String,
    pub(super) samples: u64,
    pub(super) copies: u64,
}

/// The counts of all samples.
#[derive(Default)]
pub(super) struct Profile {
    symbols: Option<KernelSymbols>,
    /// By what they show.
    activities: BTreeMap<Activity, u64>,
    /// By what they show and by the innermost function.
    functions: BTreeMap<(Activity, String), u64>,
    threads: HashMap<i32, ThreadCount>,
    /// By stack, as a line of folded text without its count.
    stacks: BTreeMap<String, u64>,
    /// The number of records that were lost.
    pub(super) lost: u64,
}

impl Profile {
    /// Starts without samples. Without symbols, nothing is known about samples in the kernel.
    pub(super) fn new(symbols: Option<KernelSymbols>) -> Self {
        Self {
            symbols,
            ..Self::default()
        }
    }

    /// Whether functions of the kernel have names.
    pub(super) fn has_symbols(&self) -> bool {
        self.symbols.is_some()
    }

    pub(super) fn add(&mut self, observation: Observation) {
        match observation {
            Observation::Sample {
                process,
                thread,
                kernel_stack,
                is_user,
            } => self.add_sample(process, thread, &kernel_stack, is_user),
            Observation::Name { thread, name } => {
                self.threads.entry(thread).or_default().name = name;
            }
            Observation::Lost(lost) => self.lost += lost,
        }
    }

    fn add_sample(&mut self, process: i32, thread: i32, kernel_stack: &[u64], is_user: bool) {
        let names = self.names(kernel_stack);
        let activity = match (is_user, self.symbols.is_some()) {
            (true, _) => Activity::User,
            (false, false) => Activity::UnnamedKernel,
            (false, true) => classify(names.iter().map(String::as_str)),
        };
        *self.activities.entry(activity).or_default() += 1;
        if let Some(leaf) = names.first() {
            let function = (activity, leaf.clone());
            *self.functions.entry(function).or_default() += 1;
        }
        let count = self.threads.entry(thread).or_default();
        count.process = process;
        if count.name.is_empty() {
            // A thread that has ended already is shown under the name of its process.
            count.name = process::name(thread)
                .or_else(|| process::name(process))
                .unwrap_or_else(|| "?".to_owned());
        }
        count.samples += 1;
        count.copies += u64::from(activity == Activity::Copy);
        let mut line = count.name.replace([';', ' '], "_");
        if is_user || names.is_empty() {
            line.push_str(if is_user { ";[user]" } else { ";[kernel]" });
        }
        for name in names.iter().rev() {
            line.push(';');
            line.push_str(name);
        }
        *self.stacks.entry(line).or_default() += 1;
    }

    /// Returns the names of the functions of a stack, the innermost first.
    fn names(&self, stack: &[u64]) -> Vec<String> {
        let Some(symbols) = &self.symbols else {
            return Vec::new();
        };
        stack
            .iter()
            .enumerate()
            .map(|(depth, address)| {
                // An outer address is that behind a call, which may be in the next function.
                let address = address - u64::from(depth > 0);
                symbols.name(address).unwrap_or(UNKNOWN_FUNCTION).to_owned()
            })
            .collect()
    }

    /// The number of all samples.
    pub(super) fn samples(&self) -> u64 {
        self.activities.values().sum()
    }

    /// The number of samples that show an activity.
    pub(super) fn count(&self, activity: Activity) -> u64 {
        self.activities.get(&activity).copied().unwrap_or(0)
    }

    /// The number of samples outside user code.
    pub(super) fn kernel_samples(&self) -> u64 {
        self.samples() - self.count(Activity::User)
    }

    /// Returns the innermost functions of an activity, those with most samples first.
    pub(super) fn functions(&self, activity: Activity) -> Vec<(&str, u64)> {
        let mut functions: Vec<_> = self
            .functions
            .iter()
            .filter(|((other, _), _)| *other == activity)
            .map(|((_, name), samples)| (name.as_str(), *samples))
            .collect();
        functions.sort_by_key(|(name, samples)| (std::cmp::Reverse(*samples), *name));
        functions
    }

    /// Returns the threads that have samples, those with most samples first.
    pub(super) fn threads(&self) -> Vec<(i32, &ThreadCount)> {
        let mut threads: Vec<_> = self
            .threads
            .iter()
            .filter(|(_, count)| count.samples > 0)
            .map(|(thread, count)| (*thread, count))
            .collect();
        threads.sort_by_key(|(thread, count)| (std::cmp::Reverse(count.samples), *thread));
        threads
    }

    /// The name of a thread, or of a process, which has the name of its first thread.
    pub(super) fn name(&self, thread: i32) -> Option<&str> {
        self.threads.get(&thread).map(|count| count.name.as_str())
    }

    /// Returns the stacks in the folded format: the thread's name and the functions, the outermost
    /// first, separated by semicolons, and the number of samples.
    pub(super) fn folded(&self) -> String {
        self.stacks
            .iter()
            .map(|(stack, samples)| format!("{stack} {samples}\n"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(thread: i32, kernel_stack: &[u64]) -> Observation {
        Observation::Sample {
            process: 0,
            thread,
            kernel_stack: kernel_stack.to_vec(),
            is_user: kernel_stack.is_empty(),
        }
    }

    #[test]
    fn samples_are_counted_by_activity_function_and_thread() {
        let symbols = "0000000000001000 T entry_SYSCALL_64\n\
                       0000000000002000 T tcp_sendmsg_locked\n\
                       0000000000003000 T _copy_from_iter\n";
        let mut profile = Profile::new(KernelSymbols::parse(symbols));
        for (thread, name) in [(-1, "a b"), (-2, "c")] {
            let name = name.to_owned();
            profile.add(Observation::Name { thread, name });
        }
        profile.add(sample(-1, &[0x3010, 0x2010, 0x1010]));
        // The call is the last instruction of the function.
        profile.add(sample(-1, &[0x3010, 0x3000, 0x1010]));
        profile.add(sample(-1, &[0x2010, 0x1010]));
        profile.add(sample(-2, &[]));
        profile.add(Observation::Lost(3));
        assert_eq!((profile.samples(), profile.kernel_samples()), (4, 3));
        assert_eq!(profile.count(Activity::Copy), 2);
        assert_eq!(profile.count(Activity::Protocol), 1);
        assert_eq!(profile.functions(Activity::Copy), [("_copy_from_iter", 2)]);
        assert_eq!(profile.lost, 3);
        let threads = profile.threads();
        assert_eq!(threads.len(), 2);
        assert_eq!(
            (threads[0].0, threads[0].1.samples, threads[0].1.copies),
            (-1, 3, 2)
        );
        assert_eq!(
            profile.folded(),
            "a_b;entry_SYSCALL_64;tcp_sendmsg_locked 1\n\
             a_b;entry_SYSCALL_64;tcp_sendmsg_locked;_copy_from_iter 2\n\
             c;[user] 1\n"
        );
    }

    #[test]
    fn without_names_nothing_is_said_about_the_kernel() {
        let mut profile = Profile::new(None);
        profile.add(sample(-1, &[0x3010]));
        assert_eq!(profile.count(Activity::UnnamedKernel), 1);
        assert_eq!(profile.count(Activity::Copy), 0);
        assert_eq!(profile.folded(), "?;[kernel] 1\n");
    }
}
