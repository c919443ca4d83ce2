import com.pixelmed.dicom.SetOfDicomFiles;
import com.pixelmed.network.MultipleInstanceTransferStatusHandlerWithFileName;
import com.pixelmed.network.StorageSOPClassSCU;
import java.util.ArrayList;
import java.util.List;

/** PixelMed stores groups of files, each over an association of its own, on each port. Arguments: the called AE title, ports with
    commas between, files with `--` between the groups. */
class Store {
    public static void main(String[] arguments) throws Exception {
        List<String> group = new ArrayList<>();
        for (int i = 2; i <= arguments.length; i++) {
            if (i < arguments.length && !arguments[i].equals("--")) {
                group.add(arguments[i]);
                continue;
            }
            SetOfDicomFiles set = new SetOfDicomFiles(group.toArray(new String[0]));  // one for both: its order is by chance
            for (String port : arguments[1].split(",")) {
                store(arguments[0], port, set);
            }
            group.clear();
        }
        System.exit(0);
    }

    static void store(String called, String port, SetOfDicomFiles set) throws Exception {
        new StorageSOPClassSCU("127.0.0.1", Integer.parseInt(port), called, "PIXELMED", set, 0,
            new MultipleInstanceTransferStatusHandlerWithFileName() {
                public void updateStatus(int left, int done, int failed, int warned, String uid, String file, boolean success) {
                    System.out.println(port + "\t" + success + "\t" + file);
                }
            });
    }
}
