import com.pixelmed.dicom.AttributeList;
import com.pixelmed.validate.DicomInstanceValidator;
import com.pixelmed.validate.DicomSRValidator;

/** PixelMed's two validators over many files: reading the templates takes longer than judging a report. */
class Validate {
    /** Arguments: `report` or `instance`, then the files; prints a line `=== FILE` before what is said of each. */
    public static void main(String[] arguments) throws Exception {
        boolean ofReports = arguments[0].equals("report");
        DicomSRValidator reports = ofReports ? new DicomSRValidator() : null;
        DicomInstanceValidator instances = ofReports ? null : new DicomInstanceValidator();
        for (int i = 1; i < arguments.length; i++) {
            AttributeList list = new AttributeList();
            list.read(arguments[i]);
            System.out.println("=== " + arguments[i]);
            System.out.println(ofReports ? reports.validate(list) : instances.validate(list));
        }
    }
}
