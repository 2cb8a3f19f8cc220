/** The thread that does one long task with the text of a spec, and ends. */
import { parentPort, workerData } from 'node:worker_threads';
import { doSpecTask, type SpecTask } from './spec-task.ts';

parentPort?.postMessage(doSpecTask(workerData as SpecTask), []);
