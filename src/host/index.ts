export { attachWords, mountCommand, qemuArguments } from './attachment.ts';
export { type ExportEntry, type ExportedTree, exportYaml } from './export-yaml.ts';
export { nearest } from './near-miss.ts';
export { printable } from './printable.ts';
export { type Counters, type ServeEvent, type Server, serve } from './serve.ts';
export { ServedTree } from './served-tree.ts';
export { loadSpec, loadSpecOrThrow, parsePolicy, parseSpec } from './spec-file.ts';
export { formatProblem, formatProblems, type Paint, SpecError, type SpecProblem } from './spec-problem.ts';
export { digestOf, State } from './state.ts';
