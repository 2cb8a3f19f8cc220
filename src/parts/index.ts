export { commandPart, type ProcessPartName, processParts, type ThreadPartName, threadParts } from './parts.ts';
export { commandOf, partEnvironment, startThread } from './start.ts';
export { thisVersion, type Version, versionOf, versionText } from './version.ts';
