export { type ExportEntry, type ExportedTree, exportYaml } from './export-yaml.ts';
export { nearest } from './near-miss.ts';
export { type Counters, type ServeEvent, type ServeOptions, Server, serve } from './serve.ts';
export { ServeError } from './serve-targets.ts';
export { ServedTree, type ServedTreeOptions } from './served-tree.ts';
export { type LoadedSpec, loadSpec, loadSpecOrThrow, parseSpec } from './spec-file.ts';
export { formatProblem, formatProblems, noPaint, type Paint, SpecError, type SpecProblem } from './spec-problem.ts';
export { digestOf, State } from './state.ts';
