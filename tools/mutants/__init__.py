"""Do the tests notice? A sample of small faults, each in a copy of the tree, and the tests that run there.

    make mutants MUTANTS_ARGS="--seed 7 --count 200 --minutes 20"

- `operators` finds what can be changed in a file, `groups` says in which files, `draw` takes a sample by a
  seed.
- `cover` knows which tests run which lines, from one run under coverage.py that is kept in `.cache/mutants`.
- `pool` forks a child for each mutant, from a process that has imported everything but the product; `child`
  is what runs there. Each worker has a copy of the tree (`tree`): the working tree is never changed.
- `equivalent` reads the table of mutants that no test can tell from the original.

Own code, because no library does this: a sample by a seed that is even over operators and packages, within a
time, with the tests of each line. mutmut (BSD-3-Clause) rewrites every function of every module before it
starts, leaves what stands outside of functions and dropped clauses alone, and takes no sample. cosmic-ray
(MIT) runs the whole command of the tests in a new process for each mutant. mutatest (MIT) takes samples, but
runs the tests the same way, and had its last release in 2022.
"""
